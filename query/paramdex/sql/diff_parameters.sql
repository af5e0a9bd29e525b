-- The parameters of one kind of a displacement that moved most, with how far in parts of the base's own norm: the
-- base's parameter has its number plus $shift, which is NULL where the atlas does not have the base.
WITH moved AS (
    SELECT param_id, address, norm
    FROM parameters
    WHERE model = $model AND kind = $kind AND ($layer IS NULL OR layer = $layer) AND norm > 0
    ORDER BY norm DESC, param_id
    LIMIT $k
)
SELECT m.param_id AS id, m.address, m.norm, (m.norm / nullif(b.norm, 0))::FLOAT AS relative
FROM moved AS m
LEFT JOIN store.parameters AS b ON b.param_id = m.param_id + $shift::BIGINT
ORDER BY m.norm DESC, m.param_id
