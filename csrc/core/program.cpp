#include "core/program.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include "core/error.h"

namespace ie::core {
namespace {

using std::string_view;

constexpr std::array<string_view, 4> kStates = {"P", "G", "OS", "R"};
constexpr std::array<string_view, 2> kLinks = {"near", "far"};
constexpr std::array<string_view, 3> kModes = {"fast", "ordered", "invariant"};
constexpr std::array<string_view, 2> kLifetimes = {"transient", "persistent"};
constexpr std::array<string_view, kNumLanes> kLanes = {"compute", "gather",    "near",
                                                       "far",     "optimizer", "host"};
constexpr std::array<string_view, 9> kKinds = {"gather",     "refresh", "compute", "pack", "reduce",
                                               "accumulate", "norm",    "update",  "free"};

std::vector<string_view> split(string_view text, char separator) {
    std::vector<string_view> parts;
    while (!text.empty()) {
        const auto end = std::min(text.find(separator), text.size());
        if (end > 0) parts.push_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return parts;
}

// A line of text: words, then key=value fields.
class Line {
  public:
    Line(std::int64_t number, string_view text) : number_(number) {
        for (const string_view part : split(text, ' ')) {
            const auto equals = part.find('=');
            if (equals == string_view::npos) {
                words_.push_back(part);
            } else {
                fields_.push_back({part.substr(0, equals), part.substr(equals + 1)});
            }
        }
    }

    string_view word(std::size_t place) const {
        IE_CHECK(place < words_.size(), "line ", number_, ": word ", place + 1, " is missing");
        return words_[place];
    }

    bool has_word(string_view word) const { return std::ranges::count(words_, word) > 0; }

    string_view field(string_view key) const {
        for (const auto& [name, value] : fields_) {
            if (name == key) return value;
        }
        fail("line ", number_, ": ", key, "= is missing");
    }

    std::int64_t to_integer(string_view found) const {
        std::int64_t value = 0;
        const auto [end, error] = std::from_chars(found.data(), found.data() + found.size(), value);
        IE_CHECK(error == std::errc{} && end == found.data() + found.size() && value >= 0, "line ", number_,
                 ": '", found, "' is not a whole number");
        return value;
    }

    std::int64_t integer(string_view key) const { return to_integer(field(key)); }

    Names names(string_view key) const {
        const string_view found = field(key);
        if (found == "-") return {};
        const auto parts = split(found, ',');
        return {parts.begin(), parts.end()};
    }

    std::vector<std::int64_t> integers(string_view key) const {
        std::vector<std::int64_t> values;
        for (const std::string& name : names(key)) values.push_back(to_integer(name));
        return values;
    }

    template <typename Enum, std::size_t N>
    Enum choice(string_view found, const std::array<string_view, N>& choices) const {
        for (std::size_t i = 0; i < N; ++i) {
            if (choices[i] == found) return static_cast<Enum>(i);
        }
        fail("line ", number_, ": '", found, "' is unknown");
    }

  private:
    std::int64_t number_;
    std::vector<string_view> words_;
    std::vector<std::pair<string_view, string_view>> fields_;
};

Level read_level(const Line& line) {
    const string_view name = line.word(1);
    const string_view state = name.substr(0, name.find_first_of("0123456789"));
    return {std::string(name), line.choice<State>(state, kStates), line.integer("size"),
            line.integer("stride"), line.choice<Link>(line.field("link"), kLinks)};
}

Instruction read_instruction(const Line& line, std::size_t number) {
    IE_CHECK(line.word(0) == std::to_string(number), "expected instruction ", number, ", found '",
             line.word(0), "'");
    const string_view micro_batch = line.field("m");
    const string_view level = line.field("level");
    return {
        .lane = line.choice<Lane>(line.word(1), kLanes),
        .kind = line.choice<Kind>(line.word(2), kKinds),
        .what = std::string(line.word(3)),
        .micro_batch = micro_batch == "-" ? kNoMicroBatch : line.to_integer(micro_batch),
        .level = std::string(level == "-" ? "" : level),
        .bytes = line.integer("bytes"),
        .cost = line.integer("cost"),
        .reads = line.names("reads"),
        .writes = line.names("writes"),
        .after = line.integers("after"),
    };
}

Program read_header(const Line& line) {
    IE_CHECK(line.word(0) == "program" && line.word(1) == "v1",
             "line 1: a Program starts with 'program v1 ...'");
    return {
        .world = line.integer("world"),
        .micro_batches = line.integer("micro_batches"),
        .mode = line.choice<Mode>(line.field("mode"), kModes),
        .param_bytes = line.integer("param_bytes"),
        .wire_bytes = line.integer("wire_bytes"),
        .window_bytes = line.integer("window_bytes"),
        .loss = line.names("loss"),
        .levels = {},
        .buckets = {},
        .values = {},
        .calls = {},
        .buffers = {},
        .instructions = {},
    };
}

void read_line(Program& program, const Line& line) {
    const string_view what = line.word(0);
    const auto name = [&] { return std::string(line.word(1)); };
    if (what == "level") {
        program.levels.push_back(read_level(line));
    } else if (what == "bucket") {
        program.buckets.push_back({line.integer("numel"), line.names("grads"), !line.has_word("frozen")});
    } else if (what == "value") {
        program.values.push_back({name(), line.integer("bytes")});
    } else if (what == "call") {
        program.calls.push_back(
            {name(), line.names("reads"), line.integers("buckets"), line.names("writes")});
    } else if (what == "buffer") {
        program.buffers.push_back(
            {name(), line.integer("bytes"), line.choice<int>(line.word(2), kLifetimes) == 1});
    } else {
        program.instructions.push_back(read_instruction(line, program.instructions.size()));
    }
}

template <typename Item>
std::string join(const std::vector<Item>& items) {
    std::string text;
    for (const Item& item : items) {
        if (!text.empty()) text += ',';
        if constexpr (std::is_same_v<Item, std::string>) {
            text += item;
        } else {
            text += std::to_string(item);
        }
    }
    return text.empty() ? "-" : text;
}

// Left-justified, like Python's f"{text:<width}".
std::string pad(std::string text, std::size_t width) {
    text.resize(std::max(text.size(), width), ' ');
    return text;
}

std::string print_instruction(std::size_t number, const Instruction& i) {
    const std::string micro_batch = i.micro_batch == kNoMicroBatch ? "-" : std::to_string(i.micro_batch);
    return pad(std::to_string(number), 4) + ' ' + pad(std::string(name_of(i.lane)), 9) + ' ' +
           pad(std::string(name_of(i.kind)), 10) + ' ' + pad(i.what, 14) + " m=" + pad(micro_batch, 2) +
           " level=" + pad(i.level.empty() ? "-" : i.level, 4) + " bytes=" + pad(std::to_string(i.bytes), 9) +
           " cost=" + pad(std::to_string(i.cost), 7) + " reads=" + join(i.reads) +
           " writes=" + join(i.writes) + " after=" + join(i.after) + '\n';
}

}  // namespace

std::string_view name_of(Lane lane) {
    return kLanes[static_cast<std::size_t>(lane)];
}

std::string_view name_of(Kind kind) {
    return kKinds[static_cast<std::size_t>(kind)];
}

std::string print_program(const Program& program) {
    std::ostringstream text;
    text << "program v1 world=" << program.world << " micro_batches=" << program.micro_batches
         << " mode=" << kModes[static_cast<std::size_t>(program.mode)]
         << " param_bytes=" << program.param_bytes << " wire_bytes=" << program.wire_bytes
         << " window_bytes=" << program.window_bytes << " loss=" << join(program.loss) << '\n';
    for (const Level& level : program.levels) {
        text << "level " << level.name << " size=" << level.size << " stride=" << level.stride
             << " link=" << kLinks[static_cast<std::size_t>(level.link)] << '\n';
    }
    for (std::size_t i = 0; i < program.buckets.size(); ++i) {
        text << "bucket " << i << " numel=" << program.buckets[i].numel
             << " grads=" << join(program.buckets[i].grads) << (program.buckets[i].trained ? "" : " frozen")
             << '\n';
    }
    for (const Value& value : program.values) {
        text << "value " << value.name << " bytes=" << value.bytes << '\n';
    }
    for (const Call& call : program.calls) {
        text << "call " << call.name << " reads=" << join(call.reads) << " buckets=" << join(call.buckets)
             << " writes=" << join(call.writes) << '\n';
    }
    for (const Buffer& buffer : program.buffers) {
        text << "buffer " << buffer.name << " bytes=" << buffer.bytes << ' ' << kLifetimes[buffer.persistent]
             << '\n';
    }
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
        text << print_instruction(i, program.instructions[i]);
    }
    return std::move(text).str();
}

Program parse_program(std::string_view text) {
    std::int64_t number = 0;
    const auto lines = split(text, '\n');
    IE_CHECK(!lines.empty(), "line 1: a Program starts with 'program v1 ...'");
    Program program = read_header(Line(1, lines[0]));
    for (const string_view line : lines) {
        if (++number > 1) read_line(program, Line(number, line));
    }
    return program;
}

}  // namespace ie::core
