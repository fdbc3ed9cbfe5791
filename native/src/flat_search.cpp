// The scan: rows in chunks that fit the L2 cache, queries in panels, survivors scored again in
// float64. The bounds are derived in docs/decisions/0002-exact-index-first-cut.md (float32) and
// 0014-codes-with-bounds.md (int8, bfloat16).
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>

#include "sage/candidate_pool.hpp"
#include "sage/flat_index.hpp"
#include "sage/parallel.hpp"

namespace sage {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kUnit = 0x1p-24;       // unit roundoff of float32
constexpr double kTiniest = 0x1p-126;   // smallest normal float32: what flushing may lose
constexpr std::size_t kChunkBytes = std::size_t{384} << 10;
constexpr std::size_t kLargestChunk = 240;  // rows; a multiple of the 6 and 8 rows of a tile
constexpr std::uint64_t kUnitRows = 4096;   // rows that a worker takes at a time
constexpr std::uint64_t kWorkPerThread = std::uint64_t{1} << 21;  // multiply-adds worth a thread
// Of the score of codes: every rounding after their exact sum, with room (decision 0014).
constexpr double kCodeRounding = 32.0 * kUnit;
constexpr std::size_t kPoolBytes = std::size_t{64} << 20;

struct ErrorModel {
    double relative;  // of |q| |x|: gamma of the float32 sum and of the steps after it
    double absolute;  // what underflow may add
    float offset;     // absolute / relative

    explicit ErrorModel(std::size_t dim)
        : relative(static_cast<double>(dim + 16) * kUnit * 1.01),
          absolute(4.0 * static_cast<double>(dim) * kTiniest),
          offset(rounded_up(absolute / relative)) {}
};

struct Free {
    void operator()(float* p) const { std::free(p); }
};

struct FreeBytes {
    void operator()(std::int8_t* p) const { std::free(p); }
};

using Floats = std::unique_ptr<float[], Free>;
using Codes = std::unique_ptr<std::int8_t[], FreeBytes>;

void* aligned_bytes(std::size_t bytes) {
    void* memory = nullptr;
    if (::posix_memalign(&memory, 64, std::max<std::size_t>(bytes, 64)) != 0) {
        throw std::bad_alloc();
    }
    return memory;
}

Floats aligned_floats(std::size_t count) {
    return Floats(static_cast<float*>(aligned_bytes(count * sizeof(float))));
}

Codes aligned_codes(std::size_t count) {
    auto* const codes = static_cast<std::int8_t*>(aligned_bytes(count));
    std::fill_n(codes, count, std::int8_t{0});
    return Codes(codes);
}

std::size_t chunk_rows(const RowFormat& format) {
    // bfloat16 is decoded chunk by chunk.
    const std::size_t row_bytes = format.storage == Storage::int8 ? format.code_bytes()
                                                                  : format.dim * sizeof(float);
    const std::size_t fitting = kChunkBytes / row_bytes / 24 * 24;
    return std::clamp<std::size_t>(fitting, 24, kLargestChunk);
}

}  // namespace

// The queries of one pass over the rows, arranged for the kernels.
struct FlatIndex::SearchJob {
    struct Group {
        std::size_t first;  // query
        std::size_t count;
        std::size_t width;  // panel width; 0: queries row-major
        std::size_t data;   // offset in `data`
        std::size_t terms;  // offset in the per-lane arrays
    };

    const FlatIndex& index;
    const float* queries;
    std::size_t m;
    std::size_t k;
    std::vector<double> norm2;
    std::vector<Group> groups;
    bool by_codes;       // rows are int8: so are queries
    std::size_t length;  // of a query in `data` or `codes`
    double longest = 0.0;  // norm of any query
    Floats data;
    Codes codes;
    std::vector<std::int32_t> correction;  // per lane
    std::size_t lanes_total = 0;
    Floats scale, a, b;

    SearchJob(const FlatIndex& owner, const float* raw, std::size_t count, std::size_t wanted)
        : index(owner),
          queries(raw),
          m(count),
          k(wanted),
          norm2(count),
          by_codes(owner.format().storage == Storage::int8),
          length(by_codes ? owner.format().code_bytes() : owner.dim_) {
        const std::size_t lanes = index.kernels_->lanes;
        std::size_t data_size = 0;
        for (std::size_t first = 0; first < m;) {
            const std::size_t left = m - first;
            std::size_t width = 2 * lanes;
            if (left <= lanes / 2) {
                width = 0;
            } else if (left <= lanes) {
                width = lanes;
            }
            const std::size_t taken = width == 0 ? left : std::min(left, width);
            groups.push_back({first, taken, width, data_size, lanes_total});
            data_size += (width == 0 ? taken : width) * length;
            lanes_total += width == 0 ? lanes : width;
            first += taken;
        }
        if (by_codes) {
            codes = aligned_codes(data_size);
            correction.assign(lanes_total, 0);
        } else {
            data = aligned_floats(data_size);
            std::fill_n(data.get(), data_size, 0.0F);
        }
        for (Floats* terms : {&scale, &a, &b}) {
            *terms = aligned_floats(lanes_total);
            std::fill_n(terms->get(), lanes_total, 0.0F);
        }
        for (const Group& group : groups) {
            for (std::size_t lane = 0; lane < group.count; ++lane) place(group, lane);
        }
    }

    void place(const Group& group, std::size_t lane) {
        const std::size_t dim = index.dim_;
        const std::size_t q = group.first + lane;
        const float* raw = queries + q * dim;
        norm2[q] = index.query_norm2(raw, q);
        const double norm = std::sqrt(norm2[q]);
        const bool cosine = index.metric_ == Metric::cosine;
        longest = std::max(longest, norm);
        const double factor = !cosine ? 1.0 : norm > 0.0 ? 1.0 / norm : 0.0;
        if (by_codes) {
            place_codes(group, lane, factor);
            return;
        }
        for (std::size_t d = 0; d < dim; ++d) {
            const auto value = static_cast<float>(raw[d] * factor);
            const std::size_t at = group.width == 0 ? lane * dim + d : d * group.width + lane;
            data[group.data + at] = value;
        }
        const ErrorModel model(dim);
        const std::size_t t = group.terms + lane;
        scale[t] = 1.0F;
        if (cosine) {
            a[t] = norm > 0.0 ? rounded_up(model.relative + model.absolute) : 0.0F;
        } else {
            // A query so long that float32 could overflow makes every row a candidate.
            a[t] = norm <= 1e18 ? rounded_up(model.relative * norm + model.absolute) : kNaN;
        }
        if (index.metric_ == Metric::l2) {
            // So that bounds also cover the rounding of float64 distances.
            b[t] = rounded_up(static_cast<double>(dim) * 0x1p-50 * norm2[q]);
        }
    }

    // |q.x - q'.x'| <= |q| |x - x'| + |q - q'| |x'|, and what rounding adds to the second part.
    void place_codes(const Group& group, std::size_t lane, double factor) {
        const std::size_t dim = index.dim_;
        const std::size_t q = group.first + lane;
        const float* raw = queries + q * dim;
        std::vector<float> values(dim);
        for (std::size_t d = 0; d < dim; ++d) values[d] = static_cast<float>(raw[d] * factor);
        std::vector<std::int8_t> own(length);
        double gap = 0.0;
        std::int32_t sum = 0;
        const float step = encode_query(values.data(), dim, index.kernels_->query_limit,
                                        own.data(), length, &gap, &sum);
        for (std::size_t d = 0; d < length; ++d) {
            const std::size_t at = group.width == 0
                                       ? lane * length + d
                                       : d / 4 * 4 * group.width + 4 * lane + d % 4;
            codes[group.data + at] = own[d];
        }
        const std::size_t t = group.terms + lane;
        correction[t] = kZeroCode * sum;
        scale[t] = step;
        const double norm = index.metric_ == Metric::cosine ? (norm2[q] > 0.0 ? 1.0 : 0.0)
                                                            : std::sqrt(norm2[q]);
        // A query so long that float32 could overflow makes every row a candidate.
        const bool usable = norm <= 1e18;
        // Of a cosine also that the query was normalised in float32.
        const double length_up = norm * (1.0 + kCodeRounding);
        a[t] = usable ? rounded_up(length_up) : kNaN;
        b[t] = usable ? rounded_up((gap + kCodeRounding * (length_up + gap)) *
                                   (1.0 + kCodeRounding))
                      : kNaN;
    }

    // The float64 score of a row, and the way back to the scan's scores.
    struct Exact {
        const SearchJob& job;
        std::size_t q;

        Ranked operator()(std::uint64_t row) const {
            const FlatIndex& index = job.index;
            const float* query = job.queries + q * index.dim_;
            float room[kMaxDim];  // NOLINT: only touched where codes are decoded
            return {index.exact_key(query, job.norm2[q], row, room), index.ids_[row], row};
        }

        float floor_of(double key) const {
            if (job.index.metric_ != Metric::l2) return rounded_down(key);
            // The scan ranks by 2 q.x - |x|^2 = |q|^2 - distance^2.
            const double margin =
                static_cast<double>(job.index.dim_) * 0x1p-50 * (job.norm2[q] - key);
            return rounded_down(job.norm2[q] + key - margin);
        }
    };
};

// One worker's pass: gathers the rows to look at into chunks and scores them.
class FlatIndex::Scanner {
public:
    Scanner(const SearchJob& job, const std::uint64_t* filter)
        : job_(job),
          index_(job.index),
          filter_(filter),
          capacity_(chunk_rows(index_.format())),
          model_(index_.dim_),
          threshold_(aligned_floats(job.lanes_total)) {
        const std::size_t widest = 2 * index_.kernels_->lanes;
        rows_.resize(capacity_);
        if (index_.format().has_codes()) {
            codes_.resize(capacity_);
            gaps_.resize(capacity_);
        }
        if (job.by_codes) steps_.resize(capacity_);
        if (index_.format().storage == Storage::bfloat16) {
            decoded_ = aligned_floats(capacity_ * index_.dim_);
        }
        numbers_.resize(capacity_);
        norms_.resize(capacity_);
        for (auto* terms : {&mul_, &bias_, &a_, &b_, &c_}) terms->resize(capacity_);
        dots_ = aligned_floats(capacity_ * widest);
        hits_.resize(capacity_ * widest);
        std::fill_n(threshold_.get(), job.lanes_total, -std::numeric_limits<float>::infinity());
        pools_.assign(job.m, CandidatePool(job.k));
    }

    std::vector<CandidatePool>& pools() noexcept { return pools_; }
    std::uint64_t scanned() const noexcept { return scanned_; }

    // Looks at rows [begin, end); begin is a multiple of 64.
    void scan(std::uint64_t begin, std::uint64_t end) {
        if (filter_ == nullptr) {
            while (begin < end) {
                const RowBlock& block = index_.store_.block_of(begin);
                const std::uint64_t stop =
                    std::min({end, block.first + block.rows, begin + (capacity_ - filled_)});
                take(block, begin, stop);
                begin = stop;
            }
            return;
        }
        const RowBlock* block = nullptr;
        for (std::uint64_t word = begin / 64; word * 64 < end; ++word) {
            for (std::uint64_t bits = filter_[word]; bits != 0; bits &= bits - 1) {
                const std::uint64_t row =
                    word * 64 + static_cast<std::uint64_t>(std::countr_zero(bits));
                if (row >= end) return;
                if (block == nullptr || row >= block->first + block->rows) {
                    block = &index_.store_.block_of(row);
                }
                take(*block, row, row + 1);
            }
        }
    }

    void flush() {
        if (filled_ == 0) return;
        if (job_.by_codes) {
            set_code_terms();
        } else {
            if (decoded_ != nullptr) decode();
            set_row_terms();
        }
        for (const SearchJob::Group& group : job_.groups) score(group);
        scanned_ += filled_ * job_.m;
        filled_ = 0;
    }

private:
    void take(const RowBlock& block, std::uint64_t begin, std::uint64_t end) {
        const RowFormat& format = index_.format();
        std::uint64_t inside = begin - block.first;
        const std::uint64_t count = end - begin;
        if (!format.has_codes()) {
            block.ensure_vectors(inside, count, format);
            for (std::uint64_t i = 0; i < count; ++i) {
                rows_[filled_ + i] = block.vectors + (inside + i) * format.dim;
            }
        } else {
            block.ensure_codes(inside, count, format);
            const std::size_t size = format.code_bytes();
            for (std::uint64_t i = 0; i < count; ++i) {
                codes_[filled_ + i] = block.codes + (inside + i) * size;
            }
            std::copy_n(block.gaps + inside, count, gaps_.data() + filled_);
            if (job_.by_codes) std::copy_n(block.steps + inside, count, steps_.data() + filled_);
        }
        std::copy_n(block.norms + inside, count, norms_.data() + filled_);
        for (std::uint64_t i = 0; i < count; ++i) numbers_[filled_ + i] = begin + i;
        filled_ += count;
        if (filled_ == capacity_) flush();
    }

    void decode() {
        const std::size_t dim = index_.dim_;
        for (std::size_t i = 0; i < filled_; ++i) {
            float* const row = decoded_.get() + i * dim;
            index_.kernels_->decode_bfloat16(reinterpret_cast<const std::uint16_t*>(codes_[i]),
                                             dim, row);
            rows_[i] = row;
        }
    }

    // Of codes; norm and gap as they are stored, every product of them rounded up by kCodeRounding.
    void set_code_terms() {
        const auto up = static_cast<float>(1.0 + kCodeRounding);
        const auto absolute = rounded_up(model_.absolute);
        // Times b of a query (at least kCodeRounding of its norm): rounding of float64 distances.
        const float for_distances =
            rounded_up(static_cast<double>(index_.dim_) * 0x1p-50 * job_.longest / kCodeRounding);
        for (std::size_t i = 0; i < filled_; ++i) {
            const float norm = norms_[i];
            const float gap = gaps_[i];
            const float step = steps_[i];
            bias_[i] = 0.0F;
            c_[i] = absolute;
            switch (index_.metric_) {
                case Metric::cosine:  // norm is the inverse norm here
                    mul_[i] = step * norm;
                    a_[i] = gap * norm * up;
                    b_[i] = (1.0F + gap * norm) * up;
                    break;
                case Metric::ip:
                    mul_[i] = step;
                    a_[i] = gap * up;
                    b_[i] = (norm + gap) * up;
                    break;
                case Metric::l2:
                    mul_[i] = 2.0F * step;
                    bias_[i] = -norm * norm;
                    a_[i] = 2.0F * gap * up;
                    b_[i] = (2.0F * (norm + gap) + for_distances) * up;
                    c_[i] = static_cast<float>(8.0 * kUnit) * norm * norm + 4.0F * absolute;
                    break;
            }
        }
    }

    void set_row_terms() {
        const auto absolute = rounded_up(model_.absolute);
        const float offset = model_.offset;
        // What codes have lost, as a part of the query's `a`, which holds model_.relative of it.
        const auto of_gap = rounded_up((1.0 + kCodeRounding) / model_.relative);
        for (std::size_t i = 0; i < filled_; ++i) {
            const float lost = decoded_ == nullptr ? 0.0F : gaps_[i] * of_gap;
            const float gap = decoded_ == nullptr ? 0.0F : gaps_[i];
            const float norm = norms_[i];
            bias_[i] = 0.0F;
            b_[i] = 0.0F;
            switch (index_.metric_) {
                case Metric::cosine:  // norm is the inverse norm here
                    mul_[i] = norm;
                    a_[i] = 1.0F + (2.0F * offset + gap + lost) * norm;
                    c_[i] = 0.0F;
                    break;
                case Metric::ip:
                    mul_[i] = 1.0F;
                    a_[i] = norm + gap + offset + lost;
                    c_[i] = absolute;
                    break;
                case Metric::l2:
                    mul_[i] = 2.0F;
                    bias_[i] = -norm * norm;
                    a_[i] = 2.0F * (norm + gap + offset + lost);
                    b_[i] = 1.0F;
                    c_[i] = static_cast<float>(8.0 * kUnit) * norm * norm + 4.0F * absolute;
                    break;
            }
        }
    }

    void score(const SearchJob::Group& group) {
        const Kernels& kernels = *index_.kernels_;
        const RowTerms row{mul_.data(), bias_.data(), a_.data(), b_.data(), c_.data()};
        const QueryTerms query{job_.scale.get() + group.terms, job_.a.get() + group.terms,
                               job_.b.get() + group.terms, threshold_.get() + group.terms};
        const std::int32_t* correction =
            job_.by_codes ? job_.correction.data() + group.terms : nullptr;
        if (group.width != 0) {
            if (job_.by_codes) {
                kernels.code_panel(codes_.data(), filled_, job_.codes.get() + group.data,
                                   correction, group.width, job_.length, dots_.get());
            } else {
                kernels.dot_panel(rows_.data(), filled_, job_.data.get() + group.data, group.width,
                                  index_.dim_, dots_.get());
            }
            collect(group, kernels.sift_panel(dots_.get(), filled_, group.width, group.count, row,
                                              query, hits_.data()));
            return;
        }
        if (job_.by_codes) {
            kernels.code_rows(codes_.data(), filled_, job_.codes.get() + group.data, correction,
                              group.count, job_.length, dots_.get(), capacity_);
        } else {
            kernels.dot_rows(rows_.data(), filled_, job_.data.get() + group.data, group.count,
                             index_.dim_, dots_.get(), capacity_);
        }
        for (std::size_t lane = 0; lane < group.count; ++lane) {
            collect(group,
                    kernels.sift_rows(dots_.get() + lane * capacity_, filled_,
                                      static_cast<std::uint32_t>(lane), row, query, hits_.data()));
        }
    }

    void collect(const SearchJob::Group& group, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
            const Hit& hit = hits_[i];
            const std::size_t q = group.first + hit.lane;
            CandidatePool& pool = pools_[q];
            pool.push(numbers_[hit.row], hit.upper, hit.lower, SearchJob::Exact{job_, q});
            threshold_[group.terms + hit.lane] = pool.threshold();
        }
    }

    const SearchJob& job_;
    const FlatIndex& index_;
    const std::uint64_t* filter_;
    std::size_t capacity_;
    ErrorModel model_;
    Floats threshold_;
    Floats dots_;
    Floats decoded_;
    std::vector<const float*> rows_;
    std::vector<const std::uint8_t*> codes_;
    std::vector<std::uint64_t> numbers_;
    std::vector<float> norms_, gaps_, steps_, mul_, bias_, a_, b_, c_;
    std::vector<Hit> hits_;
    std::vector<CandidatePool> pools_;
    std::size_t filled_ = 0;
    std::uint64_t scanned_ = 0;
};

double FlatIndex::query_norm2(const float* query, std::size_t number) const {
    const double norm2 = kernels_->dot_norm_f64(query, query, dim_).norm2;
    if (!std::isfinite(norm2)) {
        throw std::invalid_argument("queries row " + std::to_string(number) +
                                    " holds nan or inf; all values must be finite");
    }
    return norm2;
}

double FlatIndex::exact_key(const float* query, double query_norm2, std::uint64_t row,
                            float* room) const {
    const float* x = store_.vector(row, room);
    double key = 0.0;
    if (metric_ == Metric::l2) {
        key = -kernels_->squared_distance_f64(query, x, dim_);
    } else {
        const DotNorm sums = kernels_->dot_norm_f64(query, x, dim_);
        key = sums.dot;
        if (metric_ == Metric::cosine) {
            // Two roots: the product of two squared norms could underflow.
            const double norms = std::sqrt(query_norm2) * std::sqrt(sums.norm2);
            key = norms > 0.0 ? std::clamp(sums.dot / norms, -1.0, 1.0) : 0.0;
        }
    }
    // NaN (only from a file that lies) must not reach the comparators.
    return std::isnan(key) ? -std::numeric_limits<double>::infinity() : key;
}

// A bit per row that may be returned; nothing when all may.
std::optional<std::vector<std::uint64_t>> FlatIndex::row_filter(const Allow& allow) const {
    if (allow.ids) {
        ensure_table();
        std::vector<std::uint64_t> bits(live_.size(), 0);
        for (const std::int64_t id : *allow.ids) {
            const std::uint64_t row = find_live(id);
            if (row != IdTable::kMissing) bits[row / 64] |= std::uint64_t{1} << (row % 64);
        }
        return bits;
    }
    if (allow.mask) {
        std::vector<std::uint64_t> bits = live_;
        for (std::uint64_t row = 0; row < ids_.size(); ++row) {
            const auto id = static_cast<std::uint64_t>(ids_[row]);
            if (id < allow.mask->size() && (*allow.mask)[id] != 0) continue;
            bits[row / 64] &= ~(std::uint64_t{1} << (row % 64));
        }
        return bits;
    }
    if (removed_ > 0) return live_;
    return std::nullopt;
}

void FlatIndex::search(const float* queries, std::size_t m, std::size_t k, const Allow& allow,
                       unsigned threads, std::int64_t* ids, float* scores) const {
    if (k == 0) throw std::invalid_argument("k is 0; it must be at least 1");
    const Reading reading(*this);
    scan_rows(queries, m, k, row_filter(allow), threads, ids, scores);
}

void FlatIndex::search_with(std::size_t /*effort*/, const float* queries, std::size_t m,
                            std::size_t k, const Allow& allow, unsigned threads,
                            std::int64_t* ids, float* scores) const {
    search(queries, m, k, allow, threads, ids, scores);
}

void FlatIndex::scan_rows(const float* queries, std::size_t m, std::size_t k,
                          const std::optional<std::vector<std::uint64_t>>& filter,
                          unsigned threads, std::int64_t* ids, float* scores) const {
    std::fill_n(ids, m * k, std::int64_t{-1});
    std::fill_n(scores, m * k, kNaN);
    const unsigned wanted_threads = threads == 0 ? default_threads() : threads;
    std::uint64_t candidates = ids_.size();
    if (filter) {
        candidates = 0;
        for (const std::uint64_t word : *filter) {
            candidates += static_cast<std::uint64_t>(std::popcount(word));
        }
    }
    const std::size_t kept = std::min<std::size_t>(k, candidates);

    for (std::size_t first = 0; first < m;) {
        const std::size_t pool_bytes = (2 * kept + 64) * 24 * wanted_threads;
        const std::size_t count =
            std::min(m - first, std::clamp<std::size_t>(kPoolBytes / pool_bytes, 32, 1024));
        const SearchJob job(*this, queries + first * dim_, count, kept);  // also checks values
        if (kept == 0) {
            first += count;
            continue;
        }
        const std::uint64_t units = (ids_.size() + kUnitRows - 1) / kUnitRows;
        const std::uint64_t work = candidates * dim_ * count / kWorkPerThread + 1;
        const auto workers =
            static_cast<unsigned>(std::min({std::uint64_t{wanted_threads}, units, work}));
        std::vector<std::unique_ptr<Scanner>> scanners(workers);
        std::atomic<std::uint64_t> next_unit{0};
        run_workers(workers, [&](unsigned worker) {
            auto scanner = std::make_unique<Scanner>(job, filter ? filter->data() : nullptr);
            for (;;) {
                const std::uint64_t unit = next_unit.fetch_add(1, std::memory_order_relaxed);
                if (unit >= units) break;
                scanner->scan(unit * kUnitRows,
                              std::min<std::uint64_t>((unit + 1) * kUnitRows, ids_.size()));
            }
            scanner->flush();
            scanners[worker] = std::move(scanner);
        });

        std::atomic<std::size_t> next_query{0};
        std::atomic<std::uint64_t> rescored{0};
        run_workers(count >= 64 ? workers : 1, [&](unsigned) {
            for (;;) {
                const std::size_t q = next_query.fetch_add(1, std::memory_order_relaxed);
                if (q >= count) break;
                const SearchJob::Exact exact{job, q};
                CandidatePool& pool = scanners[0]->pools()[q];
                for (unsigned other = 1; other < workers; ++other) {
                    pool.absorb(scanners[other]->pools()[q], exact);
                }
                const auto& best = pool.finish(exact);
                for (std::size_t i = 0; i < best.size(); ++i) {
                    const std::size_t at = (first + q) * k + i;
                    ids[at] = best[i].id;
                    scores[at] =
                        static_cast<float>(metric_ == Metric::l2 ? -best[i].key : best[i].key);
                }
                rescored.fetch_add(pool.exact_scores(), std::memory_order_relaxed);
            }
        });
        queries_.fetch_add(count, std::memory_order_relaxed);
        rows_rescored_.fetch_add(rescored.load(), std::memory_order_relaxed);
        for (const auto& scanner : scanners) {
            rows_scanned_.fetch_add(scanner->scanned(), std::memory_order_relaxed);
        }
        first += count;
    }
}

}  // namespace sage
