-- The strongest tokens of one parameter, both sides, strongest first.
WITH lists AS (
    SELECT
        unnest(['top', 'bottom']) AS side, unnest([p.top_tokens, p.bottom_tokens]) AS ids,
        unnest([p.top_scores, p.bottom_scores]) AS scores, p.mean, p.std, m.vocabulary
    FROM store.parameters AS p
    JOIN store.models AS m USING (model_id)
    WHERE p.param_id = $param_id
),
entries AS (
    SELECT side, unnest(range(1, len(ids) + 1)) AS rank, unnest(ids) AS token_id, unnest(scores) AS score, * EXCLUDE (side, ids, scores)
    FROM lists
)
SELECT
    e.side, e.rank, e.token_id, t.token, t.text, e.score,
    CASE WHEN e.std > 0 THEN (e.score - e.mean) / e.std END AS z
FROM entries AS e
JOIN store.tokens AS t USING (vocabulary, token_id)
WHERE e.rank <= $k
ORDER BY e.side DESC, e.rank
