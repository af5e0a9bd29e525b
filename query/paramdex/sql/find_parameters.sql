-- Parameters that have the wanted tokens among their strongest: most words first, then the largest z scores.
WITH wanted AS (
    SELECT unnest($ids) AS token_id, unnest($words) AS word
),
hits AS (
    SELECT t.param_id, t.is_top, w.word, t.token_id, t.rank, t.score
    FROM store.postings AS t
    JOIN wanted AS w USING (token_id)
    WHERE t.param_id BETWEEN $first AND $last
),
words AS (
    SELECT h.param_id, h.is_top, h.word, min(h.rank) AS rank, max(abs((h.score - p.mean) / nullif(p.std, 0))) AS z,
        arg_min(h.token_id, h.rank) AS token_id
    FROM hits AS h
    JOIN store.parameters AS p USING (param_id)
    WHERE ($kind IS NULL OR p.kind = $kind) AND ($layer IS NULL OR p.layer = $layer)
    GROUP BY h.param_id, h.is_top, h.word
),
found AS (
    SELECT param_id, is_top, count(*) AS words, min(rank) AS rank, avg(z) AS z, list(token_id ORDER BY rank) AS ids
    FROM words
    GROUP BY param_id, is_top
    ORDER BY words DESC, z DESC, param_id
    LIMIT $k
)
SELECT
    p.address, p.kind, CASE WHEN f.is_top THEN 'top' ELSE 'bottom' END AS side, f.words, f.rank::INTEGER AS rank,
    f.z::FLOAT AS z, f.ids
FROM found AS f
JOIN store.parameters AS p USING (param_id)
ORDER BY f.words DESC, f.z DESC, f.param_id
