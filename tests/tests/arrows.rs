//! The architecture as absences: what each crate must not know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").to_owned()
}

/// Every crate that a workspace crate pulls in for ordinary builds, by name.
fn tree_of(name: &str) -> BTreeSet<String> {
    let metadata = cargo_metadata::MetadataCommand::new().manifest_path(root().join("Cargo.toml")).exec().expect("cargo metadata");
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let start = metadata.packages.iter().find(|p| p.name.as_str() == name).expect("a crate of the workspace");
    let mut seen = BTreeSet::new();
    let mut open = vec![&start.id];
    while let Some(id) = open.pop() {
        let node = resolve.nodes.iter().find(|n| n.id == *id).expect("a node");
        for dependency in &node.deps {
            let ordinary = dependency.dep_kinds.iter().any(|k| k.kind == cargo_metadata::DependencyKind::Normal);
            if ordinary && seen.insert(names[&dependency.pkg].clone()) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).expect("a folder of the project").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).expect("inside").display().to_string();
                files.push((name, std::fs::read_to_string(&path).expect("readable")));
            }
        }
    }
    files
}

fn files_with(folders: &[&str], needle: &str) -> Vec<String> {
    let all = folders.iter().flat_map(|f| sources(f));
    all.filter(|(_, text)| text.contains(needle)).map(|(name, _)| name).collect()
}

#[test]
fn the_store_knows_no_network_and_no_wire_format() {
    let tree = tree_of("firstfall-store");
    assert!(tree.contains("rusqlite"), "the check itself works: {tree:?}");
    for stranger in ["tokio", "axum", "hyper", "tonic", "prost", "firstfall-collector", "firstfall-dashboard"] {
        assert!(!tree.contains(stranger), "the store pulls in {stranger}");
    }
}

#[test]
fn the_agent_stands_alone_and_the_dashboard_knows_no_collector() {
    let agent = tree_of("firstfall-agent");
    assert!(!agent.iter().any(|name| name.starts_with("firstfall-")), "{agent:?}");
    assert!(!tree_of("firstfall-dashboard").contains("firstfall-collector"));
    assert!(tree_of("firstfall-collector").contains("firstfall-dashboard"), "the check itself works");
}

#[test]
fn only_the_store_holds_sql() {
    for needle in ["INSERT INTO", "rusqlite::", "CREATE TABLE"] {
        assert_eq!(files_with(&["collector/src", "dashboard/src"], needle).iter().filter(|f| !f.contains("/demo")).count(), 0, "{needle}");
        assert!(!files_with(&["collector/store/src"], needle).is_empty(), "the check itself works: {needle}");
    }
}

#[test]
fn only_the_replies_and_the_error_page_decide_status_codes() {
    let allowed = ["collector/src/receive/", "collector/src/self_metrics.rs", "dashboard/src/error.rs"];
    let found: Vec<String> = files_with(&["collector/src", "dashboard/src"], "StatusCode::")
        .into_iter()
        .filter(|f| !f.contains("/demo") && !allowed.iter().any(|a| f.starts_with(a)))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn unsafe_code_stands_where_rusqlite_asks_for_it_and_nowhere_else() {
    let needle = ["unsafe", " impl"].concat();
    assert_eq!(files_with(&["agent", "collector", "dashboard"], &needle), ["collector/store/src/sql.rs"]);
}
