// Saving and opening; docs/native-format.md describes the sections.
#include <array>
#include <cstring>
#include <string_view>

#include "sage/error.hpp"
#include "sage/flat_index.hpp"

namespace sage {
namespace {

struct Shape {
    std::uint32_t dim;
    std::uint32_t metric;
    std::uint32_t kind;     // 0: flat
    std::uint32_t storage;  // 0: float32
    std::uint64_t rows;
    std::int64_t next_id;
    std::uint64_t reserved[4];
};
static_assert(sizeof(Shape) == 64 && std::is_trivially_copyable_v<Shape>);

constexpr std::array<std::string_view, 6> kKnown = {"shape",   "ids",           "norms",
                                                    "vectors", "vector_pieces", "payload"};

void require_size(const SectionReader& reader, std::string_view section, std::uint64_t rows,
                  std::uint64_t row_bytes) {
    const std::size_t size = reader.unchecked(section).size();
    // Rows come from a checked section, but an overflow must not pass for a match either.
    if (size / row_bytes != rows || size % row_bytes != 0) {
        throw CorruptFile(reader.file()->path(), std::string(section),
                          "has " + std::to_string(size) + " bytes, which does not fit " +
                              std::to_string(rows) + " rows");
    }
}

}  // namespace

void FlatIndex::save(const std::string& path, std::span<const Extra> extra) const {
    const std::lock_guard writer(writer_);  // nothing changes meanwhile; searches go on
    SectionWriter file(path);
    Shape shape{};
    shape.dim = static_cast<std::uint32_t>(dim_);
    shape.metric = static_cast<std::uint32_t>(metric_);
    shape.rows = ids_.size() - removed_;
    shape.next_id = next_id_;
    file.begin("shape");
    file.append(&shape, sizeof(shape));

    // Runs of rows that lie side by side and live.
    const auto for_runs = [&](auto&& write) {
        for (const RowBlock& block : store_.blocks()) {
            std::uint64_t row = 0;
            while (row < block.rows) {
                if (!live(block.first + row)) {
                    ++row;
                    continue;
                }
                std::uint64_t end = row + 1;
                while (end < block.rows && live(block.first + end)) ++end;
                write(block, row, end - row);
                row = end;
            }
        }
    };
    file.begin("ids");
    for_runs([&](const RowBlock& block, std::uint64_t row, std::uint64_t count) {
        file.append(ids_.data() + block.first + row, count * sizeof(std::int64_t));
    });
    file.begin("norms");
    for_runs([&](const RowBlock& block, std::uint64_t row, std::uint64_t count) {
        file.append(block.norms + row, count * sizeof(float));
    });
    file.begin("vectors");
    const std::size_t row_bytes = dim_ * sizeof(float);
    for_runs([&](const RowBlock& block, std::uint64_t row, std::uint64_t count) {
        if (block.checks) block.checks->ensure(row * row_bytes, (row + count) * row_bytes);
        file.append(block.vectors + row * dim_, count * row_bytes);
    });
    const std::vector<std::uint32_t> pieces = file.end();
    file.begin("vector_pieces");
    file.append(pieces.data(), pieces.size() * sizeof(std::uint32_t));
    for (const auto& [name, bytes] : extra) {
        file.begin(name, false);
        file.append(bytes.data(), bytes.size());
    }
    file.commit();
}

std::unique_ptr<FlatIndex> FlatIndex::open(const std::string& path, bool map, bool read_only,
                                           Tier tier) {
    const auto reader = std::make_shared<const SectionReader>(FileBytes::open(path, map), kKnown);
    const auto shape_bytes = reader->checked("shape");
    const auto corrupt = [&](const std::string& section, const std::string& detail) {
        return CorruptFile(path, section, detail);
    };
    Shape shape{};
    if (shape_bytes.size() != sizeof(shape)) throw corrupt("shape", "has a wrong size");
    std::memcpy(&shape, shape_bytes.data(), sizeof(shape));
    if (shape.dim < 1 || shape.dim > kMaxDim || shape.metric > 2 || shape.next_id < 0) {
        throw corrupt("shape", "fields are out of range");
    }
    if (shape.kind != 0 || shape.storage != 0) {
        throw corrupt("shape", "kind " + std::to_string(shape.kind) + " with storage " +
                                   std::to_string(shape.storage) +
                                   " is unknown to this build; use a newer SAGE");
    }
    auto index = std::make_unique<FlatIndex>(shape.dim, static_cast<Metric>(shape.metric), tier);
    const std::uint64_t row_bytes = std::uint64_t{shape.dim} * sizeof(float);
    require_size(*reader, "ids", shape.rows, sizeof(std::int64_t));
    require_size(*reader, "norms", shape.rows, sizeof(float));
    require_size(*reader, "vectors", shape.rows, row_bytes);

    const auto ids = reader->checked("ids");
    index->ids_.resize(shape.rows);
    if (shape.rows > 0) std::memcpy(index->ids_.data(), ids.data(), ids.size());
    for (std::uint64_t row = 0; row < shape.rows; ++row) {
        const std::int64_t id = index->ids_[row];
        if (id < 0 || id >= shape.next_id) {
            throw corrupt("ids", "row " + std::to_string(row) + " has id " + std::to_string(id));
        }
    }
    index->append_live(shape.rows);
    index->next_id_ = shape.next_id;
    index->read_only_ = read_only;
    index->file_ = reader;

    const auto norms = reader->checked("norms");
    const auto vectors = reader->unchecked("vectors");
    const auto piece_bytes = reader->checked("vector_pieces");
    std::vector<std::uint32_t> pieces(piece_bytes.size() / sizeof(std::uint32_t));
    if (!pieces.empty()) {
        std::memcpy(pieces.data(), piece_bytes.data(), pieces.size() * sizeof(std::uint32_t));
    }
    auto checks = std::make_shared<const PieceChecks>(path, "vectors", vectors, pieces);
    if (!map) checks->ensure_all();
    RowBlock block;
    // Sections start at multiples of 64 bytes of a buffer that is aligned at least so.
    block.vectors = reinterpret_cast<const float*>(vectors.data());
    block.norms = reinterpret_cast<const float*>(norms.data());
    block.rows = shape.rows;
    block.checks = std::move(checks);
    index->store_.attach(std::move(block));
    return index;
}

void FlatIndex::verify() const {
    if (!file_) return;
    for (const std::string& name : file_->names()) file_->checked(name);
}

std::span<const std::byte> FlatIndex::extra_section(std::string_view name) const {
    if (!file_ || !file_->has(name)) return {};
    return file_->checked(name);
}

}  // namespace sage
