-- Parameters of the models of one vocabulary that have the wanted tokens among their strongest: most words first,
-- then the largest z scores. words[i] is what ids[i] was asked for by.
WITH words AS (
    SELECT
        t.param_id, t.is_top, $words[list_position($ids, t.token_id)] AS word,
        any_value(p.address) AS address, any_value(p.kind) AS kind, min(t.rank) AS rank,
        max(abs((t.score - p.mean) / nullif(p.std, 0))) AS z, arg_min(t.token_id, t.rank) AS token_id
    FROM store.postings AS t
    JOIN store.parameters AS p USING (param_id)
    WHERE t.token_id IN (SELECT unnest($ids)) AND list_contains($models, p.model_id)
        AND ($kind IS NULL OR p.kind = $kind) AND ($layer IS NULL OR p.layer = $layer)
    GROUP BY t.param_id, t.is_top, word
)
SELECT
    any_value(address) AS address, any_value(kind) AS kind, if(is_top, 'top', 'bottom') AS side, count(*) AS words,
    min(rank)::INTEGER AS rank, avg(z)::FLOAT AS z, list(token_id ORDER BY rank) AS ids, param_id AS id
FROM words
GROUP BY param_id, is_top
ORDER BY words DESC, z DESC, param_id, is_top DESC
LIMIT $k
