// Saving and opening; docs/native-format.md describes the sections.
#include <array>
#include <cstring>
#include <string_view>

#include "sage/error.hpp"
#include "sage/flat_index.hpp"
#include "sage/graph_index.hpp"

namespace sage {
namespace {

struct Shape {
    std::uint32_t dim;
    std::uint32_t metric;
    std::uint32_t kind;     // 0: flat, 1: graph
    std::uint32_t storage;  // a Storage
    std::uint64_t rows;
    std::int64_t next_id;
    std::uint64_t without_vectors;  // 1: the codes are all there is
    std::uint64_t reserved[3];
};
static_assert(sizeof(Shape) == 64 && std::is_trivially_copyable_v<Shape>);

constexpr std::array<std::string_view, 12> kKnown = {
    "shape", "ids",         "norms", "vectors", "vector_pieces",
    "codes", "code_pieces", "steps", "gaps",    "graph",
    "links", "payload"};

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
    write_file(path, 0, extra);
}

void FlatIndex::write_file(const std::string& path, std::uint32_t kind,
                           std::span<const Extra> extra) const {
    const RowFormat& format = store_.format();
    SectionWriter file(path);
    Shape shape{};
    shape.dim = static_cast<std::uint32_t>(dim_);
    shape.metric = static_cast<std::uint32_t>(metric_);
    shape.kind = kind;
    shape.storage = static_cast<std::uint32_t>(format.storage);
    shape.without_vectors = format.has_vectors() ? 0 : 1;
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
    const auto write_terms = [&](std::string_view name, const float* RowBlock::*terms) {
        file.begin(name);
        for_runs([&](const RowBlock& block, std::uint64_t row, std::uint64_t count) {
            file.append(block.*terms + row, count * sizeof(float));
        });
    };
    const auto write_pieces = [&](std::string_view name) {
        const std::vector<std::uint32_t> pieces = file.end();
        file.begin(name);
        file.append(pieces.data(), pieces.size() * sizeof(std::uint32_t));
    };
    write_terms("norms", &RowBlock::norms);
    if (format.has_steps()) write_terms("steps", &RowBlock::steps);
    if (format.has_codes()) {
        write_terms("gaps", &RowBlock::gaps);
        const std::size_t bytes = format.code_bytes();
        file.begin("codes");
        for_runs([&](const RowBlock& block, std::uint64_t row, std::uint64_t count) {
            block.ensure_codes(row, count, format);
            file.append(block.codes + row * bytes, count * bytes);
        });
        write_pieces("code_pieces");
    }
    if (format.has_vectors()) {
        file.begin("vectors");
        for_runs([&](const RowBlock& block, std::uint64_t row, std::uint64_t count) {
            block.ensure_vectors(row, count, format);
            file.append(block.vectors + row * dim_, count * format.vector_bytes());
        });
        write_pieces("vector_pieces");
    }
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
    if (shape.kind > 1 || shape.storage > 2 || shape.without_vectors > 1) {
        throw corrupt("shape", "kind " + std::to_string(shape.kind) + " with storage " +
                                   std::to_string(shape.storage) +
                                   " is unknown to this build; use a newer SAGE");
    }
    const RowFormat format{shape.dim, static_cast<Storage>(shape.storage),
                           shape.without_vectors == 0};
    if (!format.keep_vectors && !format.has_codes()) {
        throw corrupt("shape", "says that there are neither vectors nor codes");
    }
    const auto metric = static_cast<Metric>(shape.metric);
    std::unique_ptr<FlatIndex> index;
    GraphIndex* graph = nullptr;
    if (shape.kind == 0) {
        index = std::make_unique<FlatIndex>(format, metric, tier);
    } else {
        auto own = std::make_unique<GraphIndex>(format, metric, tier, graph_settings(*reader));
        graph = own.get();
        index = std::move(own);
    }
    require_size(*reader, "ids", shape.rows, sizeof(std::int64_t));
    require_size(*reader, "norms", shape.rows, sizeof(float));

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

    // Sections start at multiples of 64 bytes of a buffer that is aligned at least so.
    const auto terms_of = [&](std::string_view name) {
        require_size(*reader, name, shape.rows, sizeof(float));
        return reinterpret_cast<const float*>(reader->checked(name).data());
    };
    const auto big = [&](std::string_view name, std::string_view pieces_name,
                         std::uint64_t row_bytes,
                         std::shared_ptr<const PieceChecks>& checks) -> const std::byte* {
        require_size(*reader, name, shape.rows, row_bytes);
        const auto bytes = reader->unchecked(name);
        const auto piece_bytes = reader->checked(pieces_name);
        std::vector<std::uint32_t> pieces(piece_bytes.size() / sizeof(std::uint32_t));
        if (!pieces.empty()) {
            std::memcpy(pieces.data(), piece_bytes.data(), pieces.size() * sizeof(std::uint32_t));
        }
        checks = std::make_shared<const PieceChecks>(path, std::string(name), bytes, pieces);
        if (!map) checks->ensure_all();
        return bytes.data();
    };
    RowBlock block;
    block.norms = terms_of("norms");
    if (format.has_steps()) block.steps = terms_of("steps");
    if (format.has_codes()) {
        block.gaps = terms_of("gaps");
        block.codes = reinterpret_cast<const std::uint8_t*>(
            big("codes", "code_pieces", format.code_bytes(), block.code_checks));
    }
    if (format.has_vectors()) {
        block.vectors = reinterpret_cast<const float*>(
            big("vectors", "vector_pieces", format.vector_bytes(), block.vector_checks));
    }
    block.rows = shape.rows;
    index->store_.attach(std::move(block));
    if (graph != nullptr) graph->attach(*reader);
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
