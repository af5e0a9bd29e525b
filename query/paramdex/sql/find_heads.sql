-- Heads of the models of one vocabulary that have the wanted tokens in their strongest pairs: most words first, then
-- most pairs of two wanted words (linked), then the largest z scores. words[i] is what ids[i] was asked for by. Where
-- $passing is given, both tokens of a pair have passing[token_id]; $identical and $same_word say whether such pairs count.
WITH hits AS (
    SELECT
        r.head_id, h.address, r.matrix, r.is_top, r.source_id, r.target_id, r.rank,
        $words[list_position($ids, r.source_id)] AS source_word,
        $words[list_position($ids, r.target_id)] AS target_word,
        abs((r.score - if(r.matrix = 'QK', h.qk_mean, h.vo_mean))
            / nullif(if(r.matrix = 'QK', h.qk_std, h.vo_std), 0)) AS z,
        coalesce(source_word <> target_word, false) AS is_linked
    FROM store.pairs AS r
    JOIN store.heads AS h USING (head_id)
    WHERE (list_contains($ids, r.source_id) OR list_contains($ids, r.target_id))
        AND list_contains($models, h.model_id) AND ($kind IS NULL OR r.matrix = $kind)
        AND ($layer IS NULL OR h.layer = $layer)
        AND ($passing::BOOLEAN[] IS NULL
            OR ($passing::BOOLEAN[])[r.source_id + 1] AND ($passing::BOOLEAN[])[r.target_id + 1])
        AND ($identical OR r.source_id <> r.target_id) AND ($same_word OR NOT r.same_word)
)
SELECT
    any_value(address) AS address, matrix AS kind, if(is_top, 'top', 'bottom') AS side,
    len(list_distinct(flatten(list([source_word, target_word])))) AS words, min(rank)::INTEGER AS rank,
    max(z)::FLOAT AS z, count(*) FILTER (is_linked) AS linked,
    list(source_id ORDER BY is_linked DESC, z DESC, source_id, target_id)[:$shown] AS sources,
    list(target_id ORDER BY is_linked DESC, z DESC, source_id, target_id)[:$shown] AS targets, head_id AS id
FROM hits
GROUP BY head_id, matrix, is_top
ORDER BY words DESC, linked DESC, z DESC, head_id, matrix, is_top DESC
LIMIT $k
