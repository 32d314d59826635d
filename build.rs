//! Compiles `proto/` to Rust and writes the schema table that the JSON and YAML code reads.
//!
//! The table is made from the `.proto` sources inside the `envoy-types` package, so that it always describes the same
//! version of the API as the Rust types do. It keeps what `proto/roots.txt` names and everything reachable from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};
use protox::Compiler;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};

#[path = "proto/schema/layout.rs"]
mod layout;

/// Import roots inside the `proto` directory of `envoy-types`.
const ENVOY_INCLUDES: &[&str] = &[
    "cel-spec/proto",
    "client_model",
    "data-plane-api",
    "googleapis",
    "opentelemetry-proto",
    "protoc-gen-validate",
    "ratelimit/api",
    "xds",
];

/// Our own files: messages that no crate has.
const OWN_PROTOS: &[&str] = &[
    "envoy/tcp/metadataexchange/config/metadata_exchange.proto",
    "io/istio/http/peer_metadata/config.proto",
    "istio/envoy/config/filter/http/alpn/v2alpha1/config.proto",
    "outrigger/formatter/v1/haproxy_view.proto",
    "outrigger/health/v1/checks.proto",
    "outrigger/lb/v1/peak_ewma.proto",
    "outrigger/tls/v1/rotation.proto",
    "outrigger/upstream/v1/concurrency.proto",
    "stats/config.proto",
    "udpa/type/v1/typed_struct.proto",
    "xds/type/matcher/v3/cel.proto",
    "xds/type/matcher/v3/domain.proto",
    "xds/type/matcher/v3/http_inputs.proto",
    "xds/type/matcher/v3/ip.proto",
    "xds/type/v3/typed_struct.proto",
];

/// Fields of Envoy's API that `envoy-types` does not have yet: file, message, field, number, type. Text may name them, and
/// `proto/newer.rs` finds them in encoded messages.
const NEWER_FIELDS: &[(&str, &str, &str, i32, Type)] =
    &[("envoy/config/core/v3/health_check.proto", "HealthCheck", "name", 27, Type::String)];

/// Number of the `udpa.annotations.sensitive` field option.
const SENSITIVE_OPTION: u32 = 76_569_463;

fn main() -> Result<(), Box<dyn Error>> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let own = manifest_dir.join("proto");
    for watched in OWN_PROTOS.iter().chain(&["roots.txt", "schema/layout.rs"]) {
        println!("cargo::rerun-if-changed={}", own.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    // A new envoy-types brings other sources, and only the lock file tells.
    println!("cargo::rerun-if-changed=Cargo.lock");

    let envoy = envoy_proto_dir(&manifest_dir)?;
    compile_own(&own, &envoy, &out_dir)?;
    let roots = read_roots(&own.join("roots.txt"))?;
    let pool = compile_schema(&own, &envoy, &roots)?;
    let table = Table::reachable(&pool, &roots)?;
    fs::write(out_dir.join("schema.bin"), table.encode()?)?;
    Ok(())
}

/// Packages that `OWN_PROTOS` import from `envoy-types`, and those that the imports name in turn. The Rust types of those
/// that our messages hold are in that crate; the others are needed for options of fields only.
const IMPORTED: &[(&str, &str)] = &[
    (".cel.expr", "::envoy_types::pb::cel::expr"),
    (".google.api", "::envoy_types::pb::google::api"),
    (".google.protobuf", "::envoy_types::pb::google::protobuf"),
    (".envoy.annotations", "::envoy_types::pb::envoy::annotations"),
    (".envoy.config", "::envoy_types::pb::envoy::config"),
    (".envoy.extensions", "::envoy_types::pb::envoy::extensions"),
    (".envoy.type", "::envoy_types::pb::envoy::r#type"),
    (".udpa.annotations", "::envoy_types::pb::udpa::annotations"),
    (".validate", "::envoy_types::pb::validate"),
    (".xds.annotations", "::envoy_types::pb::xds::annotations"),
    (".xds.core", "::envoy_types::pb::xds::core"),
    // Of these packages, that crate has only some messages.
    (".xds.type.matcher.v3.ListStringMatcher", "::envoy_types::pb::xds::r#type::matcher::v3::ListStringMatcher"),
    (".xds.type.matcher.v3.Matcher", "::envoy_types::pb::xds::r#type::matcher::v3::Matcher"),
    (".xds.type.matcher.v3.Matcher.OnMatch", "::envoy_types::pb::xds::r#type::matcher::v3::matcher::OnMatch"),
    (".xds.type.matcher.v3.RegexMatcher", "::envoy_types::pb::xds::r#type::matcher::v3::RegexMatcher"),
    (".xds.type.matcher.v3.StringMatcher", "::envoy_types::pb::xds::r#type::matcher::v3::StringMatcher"),
    (".xds.type.v3.CelExpression", "::envoy_types::pb::xds::r#type::v3::CelExpression"),
    (".xds.type.v3.CelExtractString", "::envoy_types::pb::xds::r#type::v3::CelExtractString"),
];

/// Generates the Rust types of `OWN_PROTOS`.
fn compile_own(own: &Path, envoy: &Path, out_dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut compiler = Compiler::with_file_resolver(QualifyingResolver::new(&includes(own, envoy)));
    compiler.include_imports(true).open_files(OWN_PROTOS)?;
    let mut config = prost_build::Config::new();
    config
        .out_dir(out_dir)
        .enable_type_names()
        // The extern paths below replace the default ones.
        .compile_well_known_types()
        .type_name_domain(["."], "type.googleapis.com");
    for (package, path) in IMPORTED {
        config.extern_path(*package, *path);
    }
    config.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// Where `.proto` files are looked for, our own ones first.
fn includes(own: &Path, envoy: &Path) -> Vec<PathBuf> {
    [own.to_owned()].into_iter().chain(ENVOY_INCLUDES.iter().map(|include| envoy.join(include))).collect()
}

/// Finds the `.proto` sources of the `envoy-types` package that this build links.
///
/// A registry package is looked up where cargo unpacked it, by the version in the lock file. Otherwise (vendored,
/// patched) `cargo metadata` is asked, which works only when the whole workspace is on disk: true when it is vendored,
/// but not when one package of a fresh clone is built.
fn envoy_proto_dir(manifest_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    if let Some(unpacked) = unpacked_proto_dir(manifest_dir)? {
        return Ok(unpacked);
    }
    let output = Command::new(env::var("CARGO")?)
        .args(["metadata", "--offline", "--format-version", "1", "--filter-platform", &env::var("TARGET")?])
        .current_dir(manifest_dir)
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("cargo metadata lists no package envoy-types")?;
    Ok(Path::new(manifest).with_file_name("proto"))
}

/// The sources in cargo's registry directory, if the lock file takes `envoy-types` from a registry.
fn unpacked_proto_dir(manifest_dir: &Path) -> Result<Option<PathBuf>, Box<dyn Error>> {
    let lock = fs::read_to_string(manifest_dir.join("Cargo.lock"))?;
    let Some(entry) = lock.split("[[package]]").find(|entry| entry.contains("\nname = \"envoy-types\"\n")) else {
        return Ok(None);
    };
    let line =
        |key: &str| entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
    let (Some(version), Some(_from_registry)) = (line("version"), line("source")) else { return Ok(None) };
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let Some(cargo_home) = cargo_home.or_else(|| Some(env::home_dir()?.join(".cargo"))) else { return Ok(None) };
    let Ok(registries) = fs::read_dir(cargo_home.join("registry/src")) else { return Ok(None) };
    for registry in registries {
        let protos = registry?.path().join(format!("envoy-types-{version}/proto"));
        if protos.is_dir() {
            return Ok(Some(protos));
        }
    }
    Ok(None)
}

/// Full message names, and packages as names that end in `.*`.
fn read_roots(path: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let text = fs::read_to_string(path)?;
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

/// Compiles the files of every package that a root lives in, with their imports.
fn compile_schema(own: &Path, envoy: &Path, roots: &[String]) -> Result<DescriptorPool, Box<dyn Error>> {
    let includes = includes(own, envoy);
    let packages: BTreeSet<&str> = roots.iter().filter_map(|root| Some(root.rsplit_once('.')?.0)).collect();
    let mut compiler = Compiler::with_file_resolver(QualifyingResolver::new(&includes));
    for package in packages {
        // The well-known types come with the compiler.
        if package == "google.protobuf" {
            let names = ["any", "duration", "empty", "struct", "timestamp", "wrappers"];
            compiler.open_files(names.map(|name| format!("google/protobuf/{name}.proto")))?;
            continue;
        }
        let directory = package.replace('.', "/");
        let mut found = false;
        for include in &includes {
            let Ok(entries) = fs::read_dir(include.join(&directory)) else { continue };
            let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
            paths.sort();
            found |= !paths.is_empty();
            for path in &paths {
                compiler.open_file(path.strip_prefix(include)?)?;
            }
        }
        if !found {
            return Err(format!("proto/roots.txt: no .proto file for package {package}").into());
        }
    }
    Ok(compiler.descriptor_pool())
}

/// Finds files in the include directories and completes the partly qualified type names in them.
///
/// protoc resolves `common.ratelimit.v3.RateLimitDescriptor` among what the file imports. The compiler used here resolves
/// it among all files that it has seen, so it may stop at a nearer package `common` that has no such type.
struct QualifyingResolver {
    inner: ChainFileResolver,
}

impl QualifyingResolver {
    fn new(includes: &[PathBuf]) -> Self {
        let mut inner = ChainFileResolver::new();
        for include in includes {
            inner.add(IncludeFileResolver::new(include.clone()));
        }
        inner.add(GoogleFileResolver::new());
        Self { inner }
    }
}

impl FileResolver for QualifyingResolver {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let mut file = self.inner.open_file(name)?.file_descriptor_proto().clone();
        // A file of package `a.b.v1` lies in the directory a/b/v1.
        let imported = file.dependency.iter().filter_map(|path| Some(path.rsplit_once('/')?.0.replace('/', ".")));
        let visible: Vec<String> = file.package.clone().into_iter().chain(imported).collect();
        file.message_type.iter_mut().for_each(|message| qualify(message, &visible));
        for (_, message, field, number, kind) in NEWER_FIELDS.iter().filter(|(path, ..)| *path == name) {
            let newer = FieldDescriptorProto {
                name: Some((*field).to_owned()),
                number: Some(*number),
                label: Some(Label::Optional.into()),
                r#type: Some((*kind).into()),
                ..FieldDescriptorProto::default()
            };
            let owner = file.message_type.iter_mut().find(|owner| owner.name() == *message);
            owner.expect("NEWER_FIELDS names messages that exist").field.push(newer);
        }
        Ok(File::from_file_descriptor_proto(file))
    }
}

/// Makes the type names in `message` absolute where they end in one of the `visible` packages.
fn qualify(message: &mut DescriptorProto, visible: &[String]) {
    for name in message.field.iter_mut().filter_map(|field| field.type_name.as_mut()) {
        let Some(type_at) = name.find(|c: char| c.is_ascii_uppercase()) else { continue };
        let Some(package) = name[..type_at].strip_suffix('.').filter(|package| !package.is_empty()) else { continue };
        let is_it =
            |full: &&String| full.strip_suffix(package).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if let Some(full) = visible.iter().find(is_it) {
            *name = format!(".{full}.{}", &name[type_at..]);
        }
    }
    message.nested_type.iter_mut().for_each(|nested| qualify(nested, visible));
}

/// What goes into the table, in its final order.
struct Table {
    messages: Vec<MessageDescriptor>,
    message_index: HashMap<String, u32>,
    enums: Vec<EnumDescriptor>,
    enum_index: HashMap<String, u32>,
}

impl Table {
    /// Collects the roots and what they refer to.
    fn reachable(pool: &DescriptorPool, roots: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut pending = Vec::new();
        for root in roots {
            let before = pending.len();
            match root.strip_suffix(".*") {
                Some(package) => {
                    pending.extend(pool.all_messages().filter(|m| m.package_name() == package && !m.is_map_entry()));
                }
                None => pending.extend(pool.get_message_by_name(root)),
            }
            if pending.len() == before {
                return Err(format!("proto/roots.txt: nothing is named {root}").into());
            }
        }
        let mut messages = BTreeMap::new();
        let mut enums = BTreeMap::new();
        while let Some(message) = pending.pop() {
            if messages.insert(message.full_name().to_owned(), message.clone()).is_some() {
                continue;
            }
            for field in message.fields() {
                match field.kind() {
                    Kind::Message(inner) => pending.push(inner),
                    Kind::Enum(inner) => drop(enums.insert(inner.full_name().to_owned(), inner)),
                    _ => {}
                }
            }
        }
        let index = |names: Vec<String>| names.into_iter().zip(0..).collect();
        Ok(Self {
            message_index: index(messages.keys().cloned().collect()),
            messages: messages.into_values().collect(),
            enum_index: index(enums.keys().cloned().collect()),
            enums: enums.into_values().collect(),
        })
    }

    fn encode(&self) -> Result<Vec<u8>, Box<dyn Error>> {
        let reaches_any = self.reaching_any();
        let mut text = Text::default();
        let (mut messages, mut fields, mut enums, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for message in &self.messages {
            let flags = if reaches_any.contains(message.full_name()) { layout::REACHES_ANY } else { 0 };
            text.put(&mut messages, message.full_name())?;
            messages.extend([shape_of(message), flags]);
            put_u32(&mut messages, fields.len() / layout::FIELD)?;
            // The pool orders by number; people expect the order of the source.
            let mut in_source: Vec<FieldDescriptor> = message.fields().collect();
            in_source.sort_by_key(|field| field.path().last().copied());
            put_u32(&mut messages, in_source.len())?;
            for field in in_source {
                self.encode_field(&field, &mut text, &mut fields)?;
            }
        }
        for descriptor in &self.enums {
            text.put(&mut enums, descriptor.full_name())?;
            enums.extend([0, 0]);
            put_u32(&mut enums, values.len() / layout::VALUE)?;
            put_u32(&mut enums, descriptor.values().count())?;
            for value in descriptor.values() {
                text.put(&mut values, value.name())?;
                values.extend([0, 0]);
                values.extend(value.number().to_le_bytes());
            }
        }
        let mut out = Vec::new();
        put_u32(&mut out, messages.len() / layout::MESSAGE)?;
        put_u32(&mut out, fields.len() / layout::FIELD)?;
        put_u32(&mut out, enums.len() / layout::ENUM)?;
        put_u32(&mut out, values.len() / layout::VALUE)?;
        put_u32(&mut out, text.bytes.len())?;
        assert_eq!(out.len(), layout::HEADER, "the reader looks for what follows there");
        for section in [messages, fields, enums, values, text.bytes] {
            out.extend(section);
        }
        Ok(out)
    }

    fn encode_field(&self, field: &FieldDescriptor, text: &mut Text, out: &mut Vec<u8>) -> Result<(), Box<dyn Error>> {
        if field.json_name() != lower_camel(field.name()) {
            return Err(
                format!("{}: json_name {} needs a place in the table", field.full_name(), field.json_name()).into()
            );
        }
        let (kind, type_index) = self.kind_of(field)?;
        let mut flags = 0;
        for (set, flag) in [
            (field.is_list(), layout::REPEATED),
            (field.is_map(), layout::MAP),
            (field.is_packed(), layout::PACKED),
            (field.supports_presence(), layout::PRESENCE),
            (is_sensitive(field), layout::SENSITIVE),
        ] {
            flags |= if set { flag } else { 0 };
        }
        text.put(out, field.name())?;
        out.extend([kind, flags]);
        out.extend(field.number().to_le_bytes());
        out.extend(type_index.to_le_bytes());
        // The oneof of a single `optional` field only records presence.
        let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
        let oneof = oneof.and_then(|oneof| oneof.path().last().map(|index| index.cast_unsigned()));
        out.extend(oneof.unwrap_or(layout::NO_ONEOF).to_le_bytes());
        Ok(())
    }

    fn kind_of(&self, field: &FieldDescriptor) -> Result<(u8, u32), Box<dyn Error>> {
        use layout::kind;
        Ok(match field.kind() {
            Kind::Double => (kind::DOUBLE, 0),
            Kind::Float => (kind::FLOAT, 0),
            Kind::Int32 => (kind::INT32, 0),
            Kind::Int64 => (kind::INT64, 0),
            Kind::Uint32 => (kind::UINT32, 0),
            Kind::Uint64 => (kind::UINT64, 0),
            Kind::Sint32 => (kind::SINT32, 0),
            Kind::Sint64 => (kind::SINT64, 0),
            Kind::Fixed32 => (kind::FIXED32, 0),
            Kind::Fixed64 => (kind::FIXED64, 0),
            Kind::Sfixed32 => (kind::SFIXED32, 0),
            Kind::Sfixed64 => (kind::SFIXED64, 0),
            Kind::Bool => (kind::BOOL, 0),
            Kind::String => (kind::STRING, 0),
            Kind::Bytes => (kind::BYTES, 0),
            Kind::Message(_) if field.is_group() => return Err(format!("{}: a group", field.full_name()).into()),
            Kind::Message(message) => (kind::MESSAGE, self.message_index[message.full_name()]),
            Kind::Enum(descriptor) => (kind::ENUM, self.enum_index[descriptor.full_name()]),
        })
    }

    /// Names of the messages through which an `Any` can be reached, `Any` included.
    fn reaching_any(&self) -> BTreeSet<String> {
        let mut reaching = BTreeSet::from(["google.protobuf.Any".to_owned()]);
        loop {
            let before = reaching.len();
            for message in &self.messages {
                let reaches =
                    message.fields().any(|f| f.kind().as_message().is_some_and(|m| reaching.contains(m.full_name())));
                if reaches {
                    reaching.insert(message.full_name().to_owned());
                }
            }
            if reaching.len() == before {
                return reaching;
            }
        }
    }
}

/// The text section; equal names are stored once.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    offsets: HashMap<String, usize>,
}

impl Text {
    /// Stores `name` and appends its offset and length to `record`.
    fn put(&mut self, record: &mut Vec<u8>, name: &str) -> Result<(), Box<dyn Error>> {
        let offset = *self.offsets.entry(name.to_owned()).or_insert_with(|| {
            let offset = self.bytes.len();
            self.bytes.extend(name.as_bytes());
            offset
        });
        put_u32(record, offset)?;
        record.extend(u16::try_from(name.len())?.to_le_bytes());
        Ok(())
    }
}

fn put_u32(out: &mut Vec<u8>, value: usize) -> Result<(), Box<dyn Error>> {
    out.extend(u32::try_from(value)?.to_le_bytes());
    Ok(())
}

fn shape_of(message: &MessageDescriptor) -> u8 {
    use layout::shape;
    match message.full_name().strip_prefix("google.protobuf.") {
        Some("Any") => shape::ANY,
        Some("Duration") => shape::DURATION,
        Some("Timestamp") => shape::TIMESTAMP,
        Some("Struct") => shape::STRUCT,
        Some("Value") => shape::VALUE,
        Some("ListValue") => shape::LIST,
        Some(name) if name.ends_with("Value") => shape::WRAPPER,
        _ => shape::PLAIN,
    }
}

fn is_sensitive(field: &FieldDescriptor) -> bool {
    let options = field.options();
    options.extensions().any(|(extension, value)| extension.number() == SENSITIVE_OPTION && *value == Value::Bool(true))
}

/// The JSON name that the compiler gives a field: an underscore raises the next letter.
fn lower_camel(name: &str) -> String {
    let mut raise = false;
    let mut camel = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '_' => raise = true,
            c if raise => {
                camel.push(c.to_ascii_uppercase());
                raise = false;
            }
            c => camel.push(c),
        }
    }
    camel
}
