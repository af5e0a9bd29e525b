-- The heads of a displacement whose matrix QK or VO moved most.
SELECT h.head_id AS row, h.address, if($kind = 'QK', h.qk_norm, h.vo_norm) AS norm
FROM heads AS h
WHERE ($layer IS NULL OR h.layer = $layer) AND norm > 0
ORDER BY norm DESC, row
LIMIT $k
