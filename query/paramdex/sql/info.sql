-- One row per model: what it is, and how much the atlas holds of it.
SELECT
    m.model, m.family, m.family_inferred, m.n_layers AS layers, m.d_model AS width, m.n_heads AS heads, m.n_kv_heads AS kv_heads,
    coalesce(m.d_ff, m.d_expert) AS neurons, m.n_experts AS experts, m.stacks, m.vocabulary_size AS tokens,
    m.n_parameters AS parameters, 2 * h.n_heads AS matrices, m.embedding, m.tied, m.fold_norm,
    m.reading, m.reading_text, m.reading_tokens, m.rotary_left_out, m.dtype, m.top_k, m.pair_k,
    m.vocabulary, m.source, m.revision, m.base, m.weights_sha256, m.built_at, m.builder_version
FROM store.models AS m
JOIN (SELECT model_id, count(*) AS n_heads FROM store.heads GROUP BY model_id) AS h USING (model_id)
ORDER BY m.model_id
