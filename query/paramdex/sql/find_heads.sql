-- Heads that have the wanted tokens in their strongest pairs: most words first, then pairs of two wanted words, then z.
WITH wanted AS (
    SELECT unnest($ids) AS token_id, unnest($words) AS word, unnest($vocabularies) AS vocabulary
),
candidates AS (
    SELECT * FROM store.pairs WHERE list_contains($ids, source_id) OR list_contains($ids, target_id)
),
hits AS (
    SELECT r.head_id, r.matrix, r.is_top, a.word AS source_word, b.word AS target_word, r.source_id, r.target_id,
        coalesce(r.rank, r.rank_distinct) AS rank,
        abs((r.score - if(r.matrix = 'QK', h.qk_mean, h.vo_mean))
            / nullif(if(r.matrix = 'QK', h.qk_std, h.vo_std), 0)) AS z
    FROM candidates AS r
    JOIN store.heads AS h USING (head_id)
    JOIN store.models AS m USING (model_id)
    LEFT JOIN wanted AS a ON a.token_id = r.source_id AND a.vocabulary = m.vocabulary
    LEFT JOIN wanted AS b ON b.token_id = r.target_id AND b.vocabulary = m.vocabulary
    WHERE list_contains($models, m.model_id) AND (a.word IS NOT NULL OR b.word IS NOT NULL)
        AND ($kind IS NULL OR r.matrix = $kind) AND ($layer IS NULL OR h.layer = $layer)
),
counts AS (
    SELECT head_id, matrix, is_top, count(DISTINCT word) AS words
    FROM (
        SELECT head_id, matrix, is_top, source_word AS word FROM hits
        UNION ALL
        SELECT head_id, matrix, is_top, target_word AS word FROM hits
    )
    GROUP BY ALL
),
found AS (
    SELECT head_id, matrix, is_top, min(rank) AS rank, max(z) AS z,
        count(*) FILTER (source_word <> target_word) AS linked,
        list(source_id ORDER BY coalesce(source_word <> target_word, false) DESC, z DESC)[:$shown] AS sources,
        list(target_id ORDER BY coalesce(source_word <> target_word, false) DESC, z DESC)[:$shown] AS targets
    FROM hits
    GROUP BY ALL
)
SELECT
    h.address, f.matrix AS kind, CASE WHEN f.is_top THEN 'top' ELSE 'bottom' END AS side, c.words,
    f.rank::INTEGER AS rank, f.z::FLOAT AS z, m.vocabulary, f.sources, f.targets
FROM found AS f
JOIN counts AS c USING (head_id, matrix, is_top)
JOIN store.heads AS h USING (head_id)
JOIN store.models AS m USING (model_id)
ORDER BY c.words DESC, f.linked DESC, f.z DESC, f.head_id, f.matrix, f.is_top DESC
LIMIT $k
