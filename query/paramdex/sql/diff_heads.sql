-- The heads of a displacement whose matrix QK or VO moved most, with how far in parts of the norm of the base's own (its
-- head has the number plus $shift; NULL where the atlas does not have the base), and its strongest pairs of two words.
WITH moved AS (
    SELECT head_id, address, if($kind = 'QK', qk_norm, vo_norm) AS norm
    FROM heads
    WHERE model = $model AND ($layer IS NULL OR layer = $layer) AND norm > 0
    ORDER BY norm DESC, head_id
    LIMIT $k
),

pairs AS (
    SELECT
        head_id,
        list(pair ORDER BY rank_distinct) FILTER (side = 'top') AS top,
        list(pair ORDER BY rank_distinct) FILTER (side = 'bottom') AS bottom
    FROM (SELECT *, {'source': source, 'target': target, 'source_id': source_id, 'target_id': target_id} AS pair
        FROM head_pairs)
    WHERE head_id IN (SELECT head_id FROM moved) AND matrix = $kind AND rank_distinct <= $shown
    GROUP BY head_id
)

SELECT
    m.head_id AS id, m.address, m.norm, p.top, p.bottom,
    (m.norm / nullif(if($kind = 'QK', b.qk_norm, b.vo_norm), 0))::FLOAT AS relative
FROM moved AS m
LEFT JOIN pairs AS p USING (head_id)
LEFT JOIN store.heads AS b ON b.head_id = m.head_id + $shift::BIGINT
ORDER BY m.norm DESC, m.head_id
