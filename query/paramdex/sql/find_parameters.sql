-- Parameters that have the wanted tokens among their strongest: most words first, then the largest z scores.
WITH wanted AS (
    SELECT unnest($ids) AS token_id, unnest($words) AS word, unnest($vocabularies) AS vocabulary
),
hits AS (
    SELECT t.param_id, t.is_top, w.word, w.vocabulary, t.token_id, t.rank, t.score
    FROM store.postings AS t
    JOIN wanted AS w USING (token_id)
),
words AS (
    SELECT h.param_id, h.is_top, h.word, min(h.rank) AS rank, max(abs((h.score - p.mean) / nullif(p.std, 0))) AS z,
        arg_min(h.token_id, h.rank) AS token_id
    FROM hits AS h
    JOIN store.parameters AS p USING (param_id)
    JOIN store.models AS m ON m.model_id = p.model_id AND m.vocabulary = h.vocabulary
    WHERE list_contains($models, p.model_id) AND ($kind IS NULL OR p.kind = $kind)
        AND ($layer IS NULL OR p.layer = $layer)
    GROUP BY h.param_id, h.is_top, h.word
),
found AS (
    SELECT param_id, is_top, count(*) AS words, min(rank) AS rank, avg(z) AS z
    FROM words
    GROUP BY param_id, is_top
    ORDER BY words DESC, z DESC, param_id
    LIMIT $k
),
listed AS (
    SELECT param_id, is_top, list(w.token_id ORDER BY w.rank) AS ids
    FROM words AS w
    JOIN found USING (param_id, is_top)
    GROUP BY param_id, is_top
)
SELECT
    p.address, p.kind, CASE WHEN f.is_top THEN 'top' ELSE 'bottom' END AS side, f.words, f.rank::INTEGER AS rank,
    f.z::FLOAT AS z, m.vocabulary, l.ids
FROM found AS f
JOIN listed AS l USING (param_id, is_top)
JOIN store.parameters AS p USING (param_id)
JOIN store.models AS m USING (model_id)
ORDER BY f.words DESC, f.z DESC, f.param_id, f.is_top DESC
