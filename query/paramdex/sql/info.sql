-- One row a model: what it is, and how much the atlas holds of it.
SELECT
    m.model, m.family, m.family_inferred, m.n_layers AS layers, m.d_model AS width, m.n_heads AS heads, m.n_kv_heads AS kv_heads,
    m.d_ff AS neurons, m.vocabulary_size AS tokens, m.n_parameters AS parameters,
    m.n_layers * m.n_heads * 2 AS matrices, m.embedding, m.tied, m.rotary_left_out, m.dtype, m.top_k, m.pair_k,
    m.vocabulary, m.source, m.revision, m.weights_sha256, m.built_at, m.builder_version
FROM store.models AS m
ORDER BY m.model_id
