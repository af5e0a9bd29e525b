-- The heads of a displacement whose matrix QK or VO moved most, with how far in parts of the norm of the base's own (its
-- head has the number plus $shift; NULL where the atlas does not have the base).
WITH moved AS (
    SELECT head_id, address, if($kind = 'QK', qk_norm, vo_norm) AS norm
    FROM heads
    WHERE model = $model AND ($layer IS NULL OR layer = $layer) AND norm > 0
    ORDER BY norm DESC, head_id
    LIMIT $k
)
SELECT
    m.head_id AS id, m.address, m.norm, (m.norm / nullif(if($kind = 'QK', b.qk_norm, b.vo_norm), 0))::FLOAT AS relative
FROM moved AS m
LEFT JOIN store.heads AS b ON b.head_id = m.head_id + $shift::BIGINT
ORDER BY m.norm DESC, m.head_id
