-- The strongest pairs of one head, both matrices and sides, strongest first.
SELECT
    r.matrix, CASE WHEN r.is_top THEN 'top' ELSE 'bottom' END AS side, r.rank, r.rank_distinct, r.same_word,
    r.source_id, s.text AS source, r.target_id, g.text AS target, r.score
FROM store.pairs AS r
JOIN store.heads AS h USING (head_id)
JOIN store.models AS m USING (model_id)
JOIN store.tokens AS s ON s.vocabulary = m.vocabulary AND s.token_id = r.source_id
JOIN store.tokens AS g ON g.vocabulary = m.vocabulary AND g.token_id = r.target_id
WHERE r.head_id = $head_id AND (CASE WHEN $distinct THEN r.rank_distinct ELSE r.rank END) <= $k
ORDER BY r.matrix, r.is_top DESC, coalesce(CASE WHEN $distinct THEN r.rank_distinct ELSE r.rank END, 0)
