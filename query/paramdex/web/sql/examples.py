"""Example queries for the SQL editor, which any atlas can answer."""

EXAMPLES = {
    "Parameters that name the most continents": """\
SELECT address, side, count(*) AS tokens, list(text ORDER BY rank) AS which
FROM parameter_tokens
WHERE trim(lower(text)) IN ('africa', 'asia', 'europe', 'america', 'australia')
GROUP BY ALL ORDER BY tokens DESC, min(rank) LIMIT 20""",
    "Heads that copy: pairs of one word with itself": """\
SELECT address, side, count(*) FILTER (same_word) AS same_word, count(*) AS pairs
FROM head_pairs
WHERE matrix = 'VO' AND rank IS NOT NULL
GROUP BY ALL ORDER BY same_word DESC LIMIT 20""",
    "Neurons whose key and value share the most tokens": """\
SELECT k.address AS reads, v.address AS writes, count(*) AS shared, list(k.text ORDER BY k.rank) AS tokens
FROM parameter_tokens AS k
JOIN parameter_tokens AS v USING (model, layer, idx, side, token_id)
WHERE k.kind = 'ff_key' AND v.kind = 'ff_value' AND k.rank <= 10 AND v.rank <= 10
GROUP BY ALL ORDER BY shared DESC, reads LIMIT 20""",
    "The most similar parameters of two models": """\
SELECT address, neighbor, similarity
FROM neighbors
WHERE rank = 1
ORDER BY similarity DESC LIMIT 20""",
    "How large the vectors of each kind are, by layer": """\
SELECT model, kind, layer, count(*) AS vectors, round(avg(norm), 3) AS mean_norm, round(max(norm), 3) AS largest
FROM parameters
GROUP BY ALL ORDER BY model, kind, layer""",
    "Tokens that are strongest for the most neurons": """\
SELECT model, text, count(*) AS parameters
FROM parameter_tokens
WHERE rank = 1 AND side = 'top'
GROUP BY ALL ORDER BY parameters DESC LIMIT 20""",
}
