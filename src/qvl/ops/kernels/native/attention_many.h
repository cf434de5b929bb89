// Attention for many rows: blocks of keys and values are copied as floats, the keys turned on their side, and
// multiplied in register tiles (tiles.h). Included by attention.h.

template <class Source>
static void attend_many(const Attention& a, const Piece& piece) {
    const Head head = head_of(a, piece.sequence, piece.head);
    const int64_t D = a.D, rows = piece.rows, width = padded_width(D), padded = rounded_up(D, W);
    auto* queries = static_cast<float*>(scratch(11, rows * D * 4));
    auto* scores = static_cast<float*>(scratch(12, rows * SCORE_STRIDE * 4));
    auto* turned = static_cast<float*>(scratch(13, (D * SCORE_STRIDE + KEY_BLOCK * padded + rows) * 4));
    float *mixed = turned + D * SCORE_STRIDE, *ones = mixed + KEY_BLOCK * padded;
    for (int64_t i = 0; i < rows; ++i) ones[i] = 1.0f;
    widen_queries(a, piece, queries, D);
    const Running r = fresh_running(rows, width);
    for (int64_t key = piece.low; key < piece.high; key += KEY_BLOCK) {
        const int64_t count = smaller(KEY_BLOCK, piece.high - key);
        int64_t row;
        const auto* keys = Source::block(head, false, key, count, D, row);
        turn_keys(keys, row, count, D, turned);
        add_product(rows, queries, D, turned, SCORE_STRIDE, D, nullptr, scores, SCORE_STRIDE, blocks(count, W));
        weigh_rows(a, piece, head, scores, SCORE_STRIDE, key, count, r);
        const auto* values = Source::block(head, true, key, count, D, row);
        for (int64_t k = 0; k < count; ++k) widen_row(mixed + k * padded, values + k * row, D, padded);
        add_product(rows, scores, SCORE_STRIDE, mixed, padded, count, ones, r.out, width, padded / W);
    }
    write_results(a, piece, r);
}
