// The extension module sage_prefect._native: bindings only, no logic.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gil_release.hpp"
#include "sage/crc32c.hpp"
#include "sage/error.hpp"
#include "sage/flat_index.hpp"
#include "sage/graph_index.hpp"

namespace py = pybind11;

namespace {

// Callers pass arrays of the right type and layout; `noconvert` makes a wrong one a TypeError.
using Floats = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<std::int64_t, py::array::c_style>;
using Flags = py::array_t<bool, py::array::c_style>;

sage::Metric metric_named(const std::string& name) {
    if (name == "cosine") return sage::Metric::cosine;
    if (name == "ip") return sage::Metric::ip;
    if (name == "l2") return sage::Metric::l2;
    throw std::invalid_argument("metric is '" + name + "'; it must be cosine, ip or l2");
}

const char* metric_name(sage::Metric metric) {
    switch (metric) {
        case sage::Metric::ip:
            return "ip";
        case sage::Metric::l2:
            return "l2";
        case sage::Metric::cosine:
            break;
    }
    return "cosine";
}

sage::Storage storage_named(const std::string& name) {
    if (name == "float32") return sage::Storage::float32;
    if (name == "int8") return sage::Storage::int8;
    if (name == "bfloat16") return sage::Storage::bfloat16;
    throw std::invalid_argument("storage is '" + name + "'; it must be int8, bfloat16 or float32");
}

const char* storage_name(sage::Storage storage) {
    switch (storage) {
        case sage::Storage::int8:
            return "int8";
        case sage::Storage::bfloat16:
            return "bfloat16";
        case sage::Storage::float32:
            break;
    }
    return "float32";
}

std::size_t rows_of_matrix(const Floats& array, std::size_t dim, const char* what) {
    if (array.ndim() != 2 || static_cast<std::size_t>(array.shape(1)) != dim) {
        const auto shape = py::str(array.attr("shape")).cast<std::string>();
        throw std::invalid_argument(std::string(what) + " has shape " + shape +
                                    "; it must be (n, " + std::to_string(dim) + ")");
    }
    return static_cast<std::size_t>(array.shape(0));
}

template <class T>
py::array_t<T> to_numpy(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

std::span<const std::int64_t> span_of(const Ids& ids) {
    return {ids.data(), static_cast<std::size_t>(ids.size())};
}

Ids add(sage::FlatIndex& index, const Floats& vectors, const std::optional<Ids>& ids,
        bool replace) {
    const std::size_t n = rows_of_matrix(vectors, index.dim(), "vectors");
    if (ids && static_cast<std::size_t>(ids->size()) != n) {
        throw std::invalid_argument("ids has " + std::to_string(ids->size()) + " values for " +
                                    std::to_string(n) + " vectors");
    }
    const float* data = vectors.data();
    const std::int64_t* id_data = ids ? ids->data() : nullptr;
    std::vector<std::int64_t> added;
    {
        const GilRelease release;
        added = index.add(data, n, id_data, replace);
    }
    return to_numpy(added);
}

std::pair<Ids, Floats> search(const sage::FlatIndex& index, const Floats& queries, std::size_t k,
                              std::size_t effort, const std::optional<Ids>& allow_ids,
                              const std::optional<Flags>& allow_mask, unsigned threads) {
    const std::size_t m = rows_of_matrix(queries, index.dim(), "queries");
    const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(m), static_cast<py::ssize_t>(k)};
    Ids ids(shape);
    Floats scores(shape);
    sage::Allow allow;
    if (allow_ids) allow.ids = span_of(*allow_ids);
    if (allow_mask) {
        allow.mask = {reinterpret_cast<const std::uint8_t*>(allow_mask->data()),
                      static_cast<std::size_t>(allow_mask->size())};
    }
    const float* data = queries.data();
    std::int64_t* id_data = ids.mutable_data();
    float* score_data = scores.mutable_data();
    {
        const GilRelease release;
        index.search_with(effort, data, m, k, allow, threads, id_data, score_data);
    }
    return {std::move(ids), std::move(scores)};
}

py::dict stats(const sage::FlatIndex& index) {
    const sage::FlatStats now = index.stats();
    py::dict out;
    out["rows"] = now.rows;
    out["removed"] = now.removed;
    out["blocks"] = now.blocks;
    out["memory_bytes"] = now.memory_bytes;
    out["mapped_bytes"] = now.mapped_bytes;
    out["queries"] = now.queries;
    out["rows_scanned"] = now.rows_scanned;
    out["rows_rescored"] = now.rows_rescored;
    return out;
}

void save(const sage::FlatIndex& index, const std::string& path,
          const std::optional<py::buffer>& payload) {
    std::vector<sage::FlatIndex::Extra> extra;
    py::buffer_info info;
    if (payload) {
        info = payload->request();
        extra.emplace_back("payload",
                           std::span(static_cast<const std::byte*>(info.ptr),
                                     static_cast<std::size_t>(info.size * info.itemsize)));
    }
    const GilRelease release;
    index.save(path, extra);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native operators of SAGE.";

    // Never destroyed: static destructors run after the interpreter is gone.
    static const auto* const corrupt_file = new py::exception<sage::CorruptFile>(m, "CorruptFile");
    py::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const sage::FileError& e) {
            errno = e.code();
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, e.path().c_str());
        } catch (const sage::CorruptFile& e) {
            py::set_error(*corrupt_file, e.what());
        }
    });

    py::class_<sage::FlatIndex>(m, "FlatIndex")
        .def(py::init([](std::size_t dim, const std::string& metric, const std::string& storage,
                         bool keep_vectors) {
                 const sage::RowFormat format{dim, storage_named(storage), keep_vectors};
                 return std::make_unique<sage::FlatIndex>(format, metric_named(metric),
                                                          sage::chosen_tier());
             }),
             py::arg("dim"), py::arg("metric"), py::arg("storage") = "float32",
             py::arg("keep_vectors") = true)
        .def_static(
            "open",
            [](const std::string& path, bool map, bool read_only) {
                return sage::FlatIndex::open(path, map, read_only, sage::chosen_tier());
            },
            py::arg("path"), py::arg("mmap"), py::arg("read_only"),
            py::call_guard<GilRelease>())
        .def("add", &add, py::arg("vectors").noconvert(), py::arg("ids").noconvert(),
             py::arg("replace"))
        .def(
            "remove",
            [](sage::FlatIndex& index, const Ids& ids) {
                const auto span = span_of(ids);
                const GilRelease release;
                return index.remove(span);
            },
            py::arg("ids").noconvert())
        .def("compact",
             [](sage::FlatIndex& index) {
                 std::vector<std::uint64_t> rows;
                 {
                     const GilRelease release;
                     rows = index.compact();
                 }
                 return to_numpy(rows);
             })
        .def("search", &search, py::arg("queries").noconvert(), py::arg("k"), py::arg("effort"),
             py::arg("allow_ids").noconvert(), py::arg("allow_mask").noconvert(),
             py::arg("threads"))
        .def(
            "rows_of",
            [](const sage::FlatIndex& index, const Ids& ids) {
                std::vector<std::int64_t> rows;
                const auto span = span_of(ids);
                {
                    const GilRelease release;
                    rows = index.rows_of(span);
                }
                return to_numpy(rows);
            },
            py::arg("ids").noconvert())
        .def("live_rows",
             [](const sage::FlatIndex& index) { return to_numpy(index.live_rows()); })
        .def("live_ids", [](const sage::FlatIndex& index) { return to_numpy(index.live_ids()); })
        .def(
            "vectors",
            [](const sage::FlatIndex& index, const Ids& ids) {
                Floats out(std::vector<py::ssize_t>{ids.size(),
                                                    static_cast<py::ssize_t>(index.dim())});
                const auto span = span_of(ids);
                float* data = out.mutable_data();
                {
                    const GilRelease release;
                    index.copy_vectors(span, data);
                }
                return out;
            },
            py::arg("ids").noconvert())
        .def("save", &save, py::arg("path"), py::arg("payload"))
        .def("verify", &sage::FlatIndex::verify, py::call_guard<GilRelease>())
        .def("payload_section",
             [](const sage::FlatIndex& index) -> std::optional<py::bytes> {
                 const auto bytes = index.extra_section("payload");
                 if (bytes.empty()) return std::nullopt;
                 return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
             })
        .def("stats", &stats)
        .def("__len__", &sage::FlatIndex::size)
        .def_property_readonly("dim", &sage::FlatIndex::dim)
        .def_property_readonly(
            "metric", [](const sage::FlatIndex& index) { return metric_name(index.metric()); })
        .def_property_readonly(
            "storage",
            [](const sage::FlatIndex& index) { return storage_name(index.format().storage); })
        .def_property_readonly(
            "keeps_vectors",
            [](const sage::FlatIndex& index) { return index.format().has_vectors(); })
        .def_property_readonly(
            "isa", [](const sage::FlatIndex& index) { return sage::tier_name(index.tier()); })
        .def_property_readonly("read_only", &sage::FlatIndex::read_only);

    py::class_<sage::GraphIndex, sage::FlatIndex>(m, "GraphIndex")
        .def(py::init([](std::size_t dim, const std::string& metric, const std::string& storage,
                         bool keep_vectors, std::size_t degree, std::size_t build_effort) {
                 const sage::RowFormat format{dim, storage_named(storage), keep_vectors};
                 return std::make_unique<sage::GraphIndex>(
                     format, metric_named(metric), sage::chosen_tier(),
                     sage::GraphSettings{degree, build_effort});
             }),
             py::arg("dim"), py::arg("metric"), py::arg("storage"), py::arg("keep_vectors"),
             py::arg("degree"), py::arg("build_effort"))
        .def_property_readonly(
            "degree", [](const sage::GraphIndex& index) { return index.settings().degree; })
        .def_property_readonly(
            "build_effort",
            [](const sage::GraphIndex& index) { return index.settings().build_effort; })
        .def_property_readonly("linked_rows", &sage::GraphIndex::linked_rows)
        .def_property_readonly("link_bytes", &sage::GraphIndex::link_bytes);

    m.def("available_isas", [] {
        std::vector<std::string> names;
        for (const sage::Tier tier : sage::available_tiers()) names.push_back(sage::tier_name(tier));
        return names;
    });
    m.def(
        "crc32c",
        [](const py::buffer& data) {
            const py::buffer_info info = data.request();
            return sage::crc32c(info.ptr, static_cast<std::size_t>(info.size * info.itemsize));
        },
        py::arg("data"));
}
