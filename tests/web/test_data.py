"""The server's JSON: every thing at its one address, with the numbers that the atlas's own verbs give."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
from starlette.testclient import TestClient

from paramdex import Atlas
from paramdex.web.cards.comparison import Comparison
from paramdex.web.cards.head import HeadCard
from paramdex.web.cards.model import Home, ModelCard
from paramdex.web.cards.parameter import ParameterCard
from paramdex.web.cards.questions import Found, Searched
from paramdex.web.html.drawing import number
from query_helpers import Everything, shared_ids
from web_helpers import data, page


def test_home(client: TestClient, atlas: Atlas) -> None:
    home = Home.model_validate(data(client, "/.json"))
    assert home.atlas == "small.atlas"
    expected = {row["model"]: row for row in atlas.info()}
    assert [model.model for model in home.models] == list(expected)
    for model in home.models:
        row = expected[model.model]
        for name in ("family", "layers", "width", "heads", "neurons", "tokens", "parameters", "weights_sha256"):
            assert getattr(model, name) == row[name]


@pytest.mark.parametrize(
    "address",
    [
        "gpt2-a/L1/ff_value/3", "gpt2-wide/L2/H3/attn_query/5", "llama-gqa/L1/H2/attn_key/1", "bert/position/17",
        "llama-gqa/L0/ff_gate/39", "gpt2-b/L0/ff_bias/0", "bert/L1/H2/attn_value_bias/0", "bert/token_type/1",
    ],
)  # fmt: skip
def test_parameter_cards(client: TestClient, atlas: Atlas, wholes: dict[str, Everything], address: str) -> None:
    card = ParameterCard.model_validate(data(client, f"/{address}.json", k=12))
    shown = atlas.show(address, 12).to_rows()
    for side in ("top", "bottom"):
        expected = [(r["token_id"], r["text"], r["score"], r["z"]) for r in shown if r["side"] == side]
        assert [(t.token_id, t.text, t.score, t.z) for t in getattr(card, side)] == expected
    whole = wholes[card.model]
    scores = whole.row(address)
    np.testing.assert_allclose([card.mean, card.std], [scores.mean(), scores.std()], rtol=1e-4, atol=1e-6)
    near = {group.model: group.rows for group in card.nearest}
    own = atlas.similar(address, 5).to_rows()
    assert [(row.address, row.similarity) for row in near[card.model]] == [(r["address"], r["similarity"]) for r in own]
    for name in set(near) - {card.model}:
        similarities = [row.similarity for row in near[name]]
        expected_rows = atlas.similar(address, len(similarities) or 1, model=name).to_rows()
        np.testing.assert_allclose(
            similarities, [r["similarity"] for r in expected_rows][: len(similarities)], atol=1e-5
        )
    assert set(near) | set(card.elsewhere) == set(atlas.models)
    assert atlas.sql(card.sql).to_rows()[0]["text"] == card.top[0].text


def test_standing_counts_the_larger_of_the_layer(client: TestClient, atlas: Atlas) -> None:
    norms = atlas.sql("SELECT norm FROM parameters WHERE model = 'gpt2-a' AND kind = 'ff_key' AND layer = 1").to_rows()
    values = sorted(row["norm"] for row in norms)
    card = data(client, "/gpt2-a/L1/ff_key/9.json")
    assert card["standing"]["of"] == len(values)
    assert card["standing"]["larger"] == sum(value > card["norm"] for value in values)
    assert (card["standing"]["least"], card["standing"]["most"]) == (values[0], values[-1])
    np.testing.assert_allclose(card["standing"]["quartiles"], np.quantile(values, [0.25, 0.5, 0.75]), rtol=1e-5)


@pytest.mark.parametrize(
    ("address", "partners"),
    [
        ("gpt2-a/L1/ff_value/3", ["gpt2-a/L1/ff_key/3"]),
        ("llama-gqa/L0/ff_value/3", ["llama-gqa/L0/ff_key/3", "llama-gqa/L0/ff_gate/3"]),
        ("gpt2-a/L0/H1/attn_query/2", ["gpt2-a/L0/H1/attn_key/2"]),
        ("gpt2-a/L0/H1/attn_output/2", ["gpt2-a/L0/H1/attn_value/2"]),
        ("llama-gqa/L0/H3/attn_query/2", ["llama-gqa/L0/H2/attn_key/2"]),
        ("bert/position/3", []),
    ],
)
def test_partners(client: TestClient, address: str, partners: list[str]) -> None:
    assert [partner["address"] for partner in data(client, f"/{address}.json")["partners"]] == partners


@pytest.mark.parametrize("address", ["gpt2-a/L1/H0", "llama-gqa/L0/H3", "bert/L1/H2"])
@pytest.mark.parametrize("words", ["different", "all"])
def test_head_cards(client: TestClient, atlas: Atlas, address: str, words: str) -> None:
    card = HeadCard.model_validate(data(client, f"/{address}.json", words=words, k=15))
    rows = atlas.show(address, 15, distinct=words == "different").to_rows()
    for each in card.lists:
        expected = [
            (r["source_id"], r["target_id"], r["score"], r["same_word"])
            for r in rows
            if (r["matrix"], r["side"]) == (each.matrix, each.side)
        ]
        assert [(p.source.token_id, p.target.token_id, p.score, p.same_word) for p in each.pairs] == expected
    ((qk, vo),) = (
        tuple(r.values()) for r in atlas.sql("SELECT qk_norm, vo_norm FROM heads WHERE address = ?", [address])
    )
    assert (card.qk_norm, card.vo_norm) == (qk, vo)
    assert len(atlas.sql(card.sql)) == sum(len(each.pairs) for each in card.lists)


def test_a_head_says_which_heads_share_its_keys(client: TestClient) -> None:
    assert data(client, "/llama-gqa/L0/H3.json")["sharing"] == ["llama-gqa/L0/H2"]
    assert data(client, "/gpt2-a/L0/H1.json")["sharing"] == []


def test_pairs_are_filtered_by_text(client: TestClient) -> None:
    card = data(client, "/gpt2-a/L0/H0.json", k=200)
    word = card["lists"][0]["pairs"][0]["source"]["text"]
    for each in data(client, "/gpt2-a/L0/H0.json", k=200, contains=word)["lists"]:
        assert all(word in pair["source"]["text"] + "\n" + pair["target"]["text"] for pair in each["pairs"])


@pytest.mark.parametrize("address", ["gpt2-a", "gpt2-a/L1", "bert", "llama-gqa/L0"])
def test_models_and_layers(client: TestClient, atlas: Atlas, address: str) -> None:
    card = ModelCard.model_validate(data(client, f"/{address}.json"))
    model, _, layer = address.partition("/L")
    where = "model = ? AND (? = '' OR layer = TRY_CAST(? AS INT))"
    counts = atlas.sql(f"SELECT kind, count(*) AS n FROM parameters WHERE {where} GROUP BY kind", [model, layer, layer])
    assert card.kinds == {row["kind"]: row["n"] for row in counts}
    heads, vectors = card.grids
    norms = atlas.sql(f"SELECT address, vo_norm FROM heads WHERE {where} ORDER BY head_id", [model, layer, layer])
    assert [(cell.address, cell.value) for row in heads.rows for cell in row.cells] == [
        tuple(r.values()) for r in norms
    ]
    norms = atlas.sql(
        f"SELECT address, norm FROM parameters WHERE {where} AND kind = 'ff_value' ORDER BY param_id",
        [model, layer, layer],
    )
    cells = [(cell.address, cell.value, cell.count) for row in vectors.rows for cell in row.cells]
    assert cells == [(*r.values(), 1) for r in norms]


@pytest.mark.parametrize("address", ["t5", "t5/decoder", "t5/cross/L1", "moe", "moe/L1", "moe/L1/E2", "hostile"])
def test_stacks_and_experts_have_pages(strange: TestClient, address: str) -> None:
    card = data(strange, f"/{address}.json")
    found = page(strange, f"/{address}")
    cells = [cell["address"] for grid in card["grids"] for row in grid["rows"] for cell in row["cells"]]
    assert cells
    if "/E" in address:
        (grid,) = card["grids"]
        assert cells == [f"{address}/{grid['kind']}/{n}" for n in range(card["kinds"][grid["kind"]])]
    assert {f"/{cell}" for cell in cells} <= set(found.links)
    for cell in (cells[0], cells[-1]):
        assert data(strange, f"/{cell}.json")["address"] == cell


@pytest.mark.parametrize(
    "address",
    [
        "t5/decoder/L2/H3",
        "t5/cross/L0/H1/attn_output/7",
        "t5/encoder/L1/ff_key/39",
        "moe/L1/E2/ff_value/11",
        "moe/L1/E0/router/0",
        "moe/L1/ff_value/19",
    ],
)
def test_cards_of_stacks_and_experts(strange: TestClient, address: str) -> None:
    assert data(strange, f"/{address}.json")["address"] == address
    assert address in page(strange, f"/{address}").text


def test_one_address_each(client: TestClient) -> None:
    """Another way to write an address leads to the one."""
    for asked, there in {
        "/gpt2-a/L01/H1": "/gpt2-a/L1/H1",
        "/gpt2-a/": "/gpt2-a",
        "/gpt2-a/L0/ff_key/007.json?k=3": "/gpt2-a/L0/ff_key/7.json?k=3",
        "/llama-gqa/L0/H3/attn_key/2": "/llama-gqa/L0/H2/attn_key/2",
    }.items():
        answer = client.get(asked, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, there)


@pytest.mark.parametrize("q", ["canada", "food bread", '" Canada"', "##ing"])
def test_find_and_search_are_the_verbs(client: TestClient, atlas: Atlas, q: str) -> None:
    words = [q.strip('"')] if '"' in q else q.split()
    found = Found.model_validate(data(client, "/find.json", q=q, k=7))
    assert found.words == words
    expected = atlas.find(words, 100).to_rows()
    parameters = [row for row in expected if row["kind"] not in ("QK", "VO")]
    assert [(p.address, p.side, p.words, p.rank, p.z) for p in found.parameters] == [
        (r["address"], r["side"], r["words"], r["rank"], r["z"]) for r in parameters[:7]
    ]
    assert sum(choice.count for choice in found.facets.side) == found.counted == len(expected)
    searched = Searched.model_validate(data(client, "/search.json", q=q, k=7))
    assert [(r.rank, r.address, r.words, r.z, r.similarity) for r in searched.rows] == [
        (r["rank"], r["address"], r["words"], r["z"], r["similarity"]) for r in atlas.search(words, 100).to_rows()[:7]
    ]


def test_pages_show_z_and_words_where_they_differ(client: TestClient, atlas: Atlas) -> None:
    """Of the words of the last two only bert has both, and it has two token types and 32 positions."""
    for path, k, named in (
        ("/search?q=canada&side=both&k=7", 7, []),
        ("/ask?q=canada", 6, []),
        ("/search?q=ottawa+bread-butter&kind=token_type", 2, []),
        ("/search?q=ottawa+bread-butter&kind=position&k=60", 60, ["Words"]),
    ):
        text = client.get(path).text.split('class="list near"')[1].split("</table>")[0]
        names, values = re.findall(r'<th scope="col".*?>([^<>]+)<', text), re.findall(r'"z">([^<]+)<', text)
        assert names == ["Parameter", *named, "z", "Correlation", "Strongest tokens"]
        query = dict(parse_qsl(path.partition("?")[2]))
        rows = atlas.search(query["q"], k, kind=query.get("kind"), side=query.get("side", "top")).to_rows()
        assert values == [number(row["z"]) for row in rows]
    assert 'data-label="z"' not in client.get("/similar?address=gpt2-a/L0/ff_value/1").text


def test_facets_narrow(client: TestClient) -> None:
    whole = data(client, "/find.json", q="canada", k=200)
    for choice in whole["facets"]["side"]:
        rows = data(client, "/find.json", q="canada", k=200, side=choice["value"])
        assert {row["side"] for row in (*rows["parameters"], *rows["heads"])} == {choice["value"]}
    rows = data(client, "/find.json", q="canada", model="bert", kind="ff_key", layer=1)
    assert all(row["address"].startswith("bert/L1/ff_key/") for row in rows["parameters"])
    assert rows["heads"] == []


@pytest.mark.parametrize(
    ("q", "kind", "address"),
    [
        ("canada", "words", None),
        ("food bread", "words", None),
        ("gpt2-a", "address", "gpt2-a"),
        ("gpt2-a/L1/H0", "address", "gpt2-a/L1/H0"),
        ("gpt2-a/L9/H0", "address", "gpt2-a/L9/H0"),
        ("either/or", "words", None),
    ],
)
def test_what_the_search_box_understands(client: TestClient, q: str, kind: str, address: str | None) -> None:
    meant = data(client, "/ask.json", q=q)
    assert (meant["kind"], meant["address"]) == (kind, address)
    if address:
        assert (
            client.get("/ask", params={"q": q}, follow_redirects=False).headers["location"].startswith(f"/{address}?")
        )


@pytest.mark.parametrize("pair", [("gpt2-a", "gpt2-wide"), ("gpt2-wide", "gpt2-a"), ("bert", "gpt2-a")])
def test_comparisons(client: TestClient, atlas: Atlas, pair: tuple[str, str]) -> None:
    answer = Comparison.model_validate(data(client, f"/align/{pair[0]}/{pair[1]}.json"))
    expected = atlas.align(*pair)
    assert [each.kind for each in answer.maps] == expected.kinds
    for each in answer.maps:
        scores = [[cell.score for cell in row] for row in each.rows]
        np.testing.assert_allclose(scores, expected.scores(each.kind), atol=1e-6)
    one = data(client, f"/align/{pair[0]}/{pair[1]}.json", kind="ff_value")
    assert [each["kind"] for each in one["maps"]] == ["ff_value"]


@pytest.mark.parametrize(("a", "b"), [("gpt2-a", "gpt2-wide"), ("gpt2-wide", "gpt2-b"), ("bert", "gpt2-a")])
def test_the_most_similar_pairs_of_two_layers(
    client: TestClient, wholes: dict[str, Everything], db: object, a: str, b: str
) -> None:
    """Against all pairs of all V scores."""
    answer = data(client, f"/align/{a}/{b}/pairs.json", kind="ff_value", layer_a="L1", layer_b="L0", k=8)
    chosen = [wholes[a].chosen("ff_value", 1), wholes[b].chosen("ff_value", 0)]
    ids = shared_ids(db, a, b) if a == "bert" else (slice(None), slice(None))  # type: ignore[arg-type]
    rows = [whole.scores[rows][:, i] for whole, rows, i in zip((wholes[a], wholes[b]), chosen, ids, strict=True)]
    rows = [row - row.mean(axis=1, keepdims=True) for row in rows]
    rows = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
    truth = np.sort((rows[0] @ rows[1].T).ravel())[::-1][:8]
    np.testing.assert_allclose([row["similarity"] for row in answer["rows"]], truth, atol=2e-5)
    assert answer["compared"] == len(chosen[0]) * len(chosen[1])


def test_every_page_links_only_to_what_there_is(client: TestClient) -> None:
    seen: set[str] = set()
    for path in ("/", "/gpt2-a/L1", "/gpt2-a/L0/ff_value/1", "/bert/L0/H1", "/find?q=canada", "/align/gpt2-a/gpt2-b",
                 "/ask?q=food", "/docs"):  # fmt: skip
        links = [link for link in page(client, path).links if not link.startswith(("#", "/similar"))]
        for link in [*links[:9], *links[-9:]]:
            if link not in seen and not link.startswith("/sql"):
                seen.add(link)
                assert client.get(link).status_code == 200, (path, link)
    assert len(seen) > 40


def test_no_path_of_the_machine_is_told(client: TestClient, small_atlas: Path) -> None:
    for path in ("/", "/.json", "/gpt2-a", "/gpt2-a.json", "/nope/L1", "/nope.json", "/align/nope/bert.json", "/docs"):
        text = client.get(path).text
        assert str(small_atlas.parent) not in text
        assert str(small_atlas) not in text
