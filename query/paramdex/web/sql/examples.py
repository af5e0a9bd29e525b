"""Example queries for the SQL editor, which any atlas can answer."""

EXAMPLES = {
    "Parameters that name the most continents": """\
SELECT address, side, count(*) AS tokens, list(text ORDER BY rank_token_z) AS which
FROM parameter_tokens
WHERE rank_token_z IS NOT NULL
  AND trim(lower(text)) IN ('africa', 'asia', 'europe', 'america', 'australia')
GROUP BY ALL ORDER BY tokens DESC, min(rank_token_z) LIMIT 20""",
    "Heads that copy: pairs of one word with itself": """\
SELECT address, side, count(*) FILTER (same_word) AS same_word, count(*) AS pairs
FROM head_pairs
WHERE matrix = 'VO' AND rank IS NOT NULL
GROUP BY ALL ORDER BY same_word DESC LIMIT 20""",
    "Neurons whose key and value share the most tokens": """\
SELECT k.address AS reads, v.address AS writes, count(*) AS shared, list(k.text ORDER BY k.rank_token_z) AS tokens
FROM parameter_tokens AS k
JOIN parameter_tokens AS v USING (model, layer, idx, side, token_id)
WHERE k.kind = 'ff_key' AND v.kind = 'ff_value' AND k.rank_token_z <= 10 AND v.rank_token_z <= 10
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
    "Hubs: tokens among the ten strongest of most parameters, by score and by token_z": """\
SELECT model, text, in_top_10 AS by_score, in_top_10_token_z AS by_token_z, round(norm, 3) AS norm
FROM token_embeddings
ORDER BY by_score DESC LIMIT 20""",
}
