use kube::ResourceExt;
use tempfile::TempDir;

use super::*;
use crate::api::{Aggregation, MeterSpec};
use crate::metering::{Caller, Error as ApiError, Page};
use crate::registry::Registry;
use crate::registry::folder::FolderRegistry;

/// A folder of manifests and a data folder.
struct Case {
    manifests: TempDir,
    data: TempDir,
}

impl Case {
    fn new(files: &[(&str, &str)]) -> Self {
        let case = Self { manifests: tempfile::tempdir().unwrap(), data: tempfile::tempdir().unwrap() };
        files.iter().for_each(|(name, text)| case.write(name, text));
        case
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.manifests.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.manifests.path().join(name)).unwrap()
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.manifests.path().join(name)).unwrap();
    }

    fn open(&self) -> Folder {
        Folder::open(self.manifests.path(), self.data.path(), "shop").unwrap()
    }
}

fn meter(name: &str, event_type: &str) -> String {
    format!(
        "apiVersion: kubemeter.io/v1alpha1\nkind: Meter\nmetadata:\n  name: {name}\nspec:\n  eventType: {event_type}\n  aggregation: Count\n"
    )
}

fn customer(name: &str) -> String {
    format!("apiVersion: kubemeter.io/v1alpha1\nkind: Customer\nmetadata: {{name: {name}}}\nspec: {{}}\n")
}

fn names(folder: &Folder) -> Vec<String> {
    folder.snapshot().meters.iter().map(ResourceExt::name_any).collect()
}

fn only(folder: &Folder) -> Meter {
    let mut all = folder.snapshot().meters;
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn lines(folder: &Folder) -> Vec<String> {
    let state = folder.lock();
    state
        .told
        .iter()
        .map(|problem| match problem {
            Problem::Ignored(line) => format!("ignored: {line}"),
            Problem::Wrong(line) => format!("wrong: {line}"),
        })
        .collect()
}

fn caller() -> Caller {
    Caller::trusted("shop")
}

fn spec(event_type: &str) -> MeterSpec {
    let spec = serde_json::json!({"eventType": event_type, "aggregation": "Count"});
    serde_json::from_value(spec).unwrap()
}

#[test]
fn each_bad_document_is_one_line_and_the_rest_goes_on() {
    let bad = "apiVersion: kubemeter.io/v1alpha1\nkind: Meter\nmetadata: {name: bad}\nspec: {eventType: '', aggregation: Sum, groupBy: {X: $.x}}\n";
    let typo = "apiVersion: kubemeter.io/v1alpha1\nkind: Meter\nmetadata: {name: typo}\nspec: {eventTyp: a, aggregation: Count}\n";
    let text = [
        &meter("good", "a"),
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: x}\n",
        bad,
        typo,
        "a: [\n",
        "just text\n",
        &customer("acme"),
    ]
    .join("---\n");
    let case = Case::new(&[("all.yaml", &text), ("again.yml", &meter("good", "b")), (".hidden.yaml", "a: ["), ("notes.txt", "a: [")]);
    let folder = case.open();
    assert_eq!(names(&folder), ["good"]);
    assert_eq!(folder.snapshot().customers.len(), 1);
    let lines = lines(&folder);
    assert_eq!(lines.len(), 6, "{lines:#?}");
    for (start, part) in [
        ("ignored: all.yaml, document 2: ", "Job of batch/v1"),
        ("wrong: all.yaml, document 1: ", "is in again.yml, document 1, already"),
        ("wrong: all.yaml, document 3: ", "spec.groupBy.X: a group name is"),
        ("wrong: all.yaml, document 4: ", "unknown field `eventTyp`"),
        ("wrong: all.yaml, document 5: ", "line 24"),
        ("wrong: all.yaml, document 6: ", "expected a Kubernetes manifest"),
    ] {
        assert!(
            lines.iter().any(|line| line.starts_with(start) && line.contains(part) && !line.contains('\n')),
            "{start}{part}: {lines:#?}"
        );
    }
    let third = lines.iter().find(|line| line.contains("document 3")).unwrap();
    assert!(
        third.contains("spec.eventType: must not be empty") && third.contains("spec.valueProperty: is required"),
        "all causes: {third}"
    );
}

#[test]
fn an_identity_outlives_a_restart_but_not_the_object() {
    let case = Case::new(&[("m.yaml", &meter("m", "a"))]);
    let first = only(&case.open());
    assert_eq!(first.namespace().as_deref(), Some("shop"));
    let folder = case.open();
    assert_eq!(only(&folder).metadata, first.metadata);

    // Moved to another file: the same object.
    case.remove("m.yaml");
    case.write("other.yaml", &meter("m", "a"));
    folder.rescan().unwrap();
    assert_eq!((only(&folder).uid(), folder.snapshot().going_meters.len()), (first.uid(), 0));

    // Removed while nobody looked: it must be forgotten, with the uid and spec it had; made again, it is another.
    drop(folder);
    case.remove("other.yaml");
    assert_eq!(names(&case.open()), [""; 0]);
    case.write("m.yaml", &meter("m", "a"));
    let folder = case.open();
    let going = folder.snapshot().going_meters;
    assert_eq!((going[0].uid(), going[0].spec.event_type.as_str(), going.len()), (first.uid(), "a", 1));
    assert!(going[0].metadata.deletion_timestamp.is_some());
    assert_ne!(only(&folder).uid(), first.uid());

    folder.forgotten(&first.uid().unwrap()).unwrap();
    assert!(case.open().snapshot().going_meters.is_empty());
}

#[test]
fn the_generation_follows_the_spec_only() {
    let case = Case::new(&[("m.yaml", &meter("m", "a"))]);
    let folder = case.open();
    let first = only(&folder);
    assert_eq!(first.metadata.generation, Some(1));

    case.write("m.yaml", &format!("# a comment\n{}", meter("m", "a")));
    folder.rescan().unwrap();
    assert_eq!(only(&folder).metadata, first.metadata);

    case.write("m.yaml", &meter("m", "a").replace("name: m", "name: m\n  labels: {team: x}"));
    folder.rescan().unwrap();
    let labelled = only(&folder);
    assert_eq!(labelled.metadata.generation, Some(1));
    assert_ne!(labelled.resource_version(), first.resource_version());

    case.write("m.yaml", &meter("m", "b"));
    folder.rescan().unwrap();
    let edited = only(&folder);
    assert_eq!((edited.metadata.generation, edited.uid(), edited.spec.event_type.as_str()), (Some(2), first.uid(), "b"));
}

#[test]
fn a_mistyped_file_removes_nothing() {
    let case = Case::new(&[("m.yaml", &[meter("m", "a"), meter("n", "a")].join("---\n"))]);
    let folder = case.open();
    let uid = folder.snapshot().meters[0].uid();
    for broken in ["a: [\n".to_owned(), meter("m", "a").replace("Count", "Cuont"), meter("m", "''")] {
        case.write("m.yaml", &[broken, meter("n", "b")].join("---\n"));
        folder.rescan().unwrap();
        let all = folder.snapshot();
        assert_eq!((all.meters[0].uid(), all.meters[0].spec.event_type.as_str()), (uid.clone(), "a"));
        assert_eq!(all.meters[1].spec.event_type, "b", "the rest goes on");
        assert!(all.going_meters.is_empty());
    }
    // The same after a restart.
    assert_eq!(case.open().snapshot().meters[0].uid(), uid);
    case.write("m.yaml", &meter("n", "b"));
    folder.rescan().unwrap();
    assert_eq!((names(&folder), folder.snapshot().going_meters[0].uid()), (vec!["n".to_owned()], uid));
}

#[test]
fn a_folder_that_is_gone_removes_nothing() {
    let case = Case::new(&[("m.yaml", &meter("m", "a"))]);
    let folder = case.open();
    std::fs::rename(case.manifests.path(), case.data.path().join("aside")).unwrap();
    let why = folder.rescan().unwrap_err().to_string();
    assert!(why.contains("no manifests folder"), "{why}");
    assert_eq!(names(&folder), ["m"]);
    let why = Folder::open(case.manifests.path(), case.data.path(), "shop").err().unwrap().to_string();
    assert!(why.contains("--manifests"), "{why}");
}

#[test]
fn a_damaged_memory_is_refused_by_name() {
    let case = Case::new(&[]);
    std::fs::write(case.data.path().join("objects.json"), "{").unwrap();
    let why = Folder::open(case.manifests.path(), case.data.path(), "shop").err().unwrap().to_string();
    assert!(why.contains("objects.json is damaged") && !why.contains('\n'), "{why}");
}

#[test]
fn a_status_stays_with_its_object() {
    let case = Case::new(&[("m.yaml", &meter("m", "a"))]);
    let folder = case.open();
    let before = only(&folder);
    let status = crate::api::MeterStatus { events: Some(7), ..Default::default() };
    let after: Meter = folder.set_status(&before.uid().unwrap(), &status).unwrap().unwrap();
    assert_eq!((after.status, after.metadata), (Some(status.clone()), before.metadata.clone()));
    case.write("m.yaml", &meter("m", "b"));
    let folder = case.open();
    assert_eq!((only(&folder).status, only(&folder).metadata.generation), (Some(status.clone()), Some(2)));
    assert!(folder.set_status::<Meter>("another", &status).unwrap().is_none());
}

#[tokio::test]
async fn objects_are_written_as_manifests() {
    let case = Case::new(&[]);
    let registry = FolderRegistry::new(case.open());
    let made = registry.create(&caller(), Meter::new("m", spec("a"))).await.unwrap();
    assert!(made.uid().is_some() && made.metadata.generation == Some(1));
    let text = case.read("meter-shop-m.yaml");
    assert!(text.contains("namespace: shop") && !text.contains("uid"), "{text}");
    assert_eq!(only(&case.open()).metadata, made.metadata, "it reads as it was written");

    let conflict = registry.create(&caller(), Meter::new("m", spec("b"))).await.unwrap_err();
    assert!(matches!(&conflict, ApiError::Conflict(why) if why.contains("exists already")), "{conflict}");

    // Two names that make the same file name share the file.
    let dashes = Caller::trusted("shop-m");
    registry.create(&dashes, Meter::new("n", spec("a"))).await.unwrap();
    registry.create(&caller(), Meter::new("m-n", spec("a"))).await.unwrap();
    assert_eq!(crate::yaml::documents(&case.read("meter-shop-m-n.yaml")).len(), 2);
    assert_eq!(registry.get::<Meter>(&dashes, "n").await.unwrap().name_any(), "n");
    registry.delete::<Meter>(&dashes, "n").await.unwrap();
    registry.get::<Meter>(&caller(), "m-n").await.unwrap();
    registry.delete::<Meter>(&caller(), "m-n").await.unwrap();
    assert!(!case.manifests.path().join("meter-shop-m-n.yaml").exists());
    assert!(matches!(registry.get::<Meter>(&caller(), "m-n").await, Err(ApiError::NotFound(_))));
    assert!(matches!(registry.delete::<Meter>(&caller(), "m-n").await, Err(ApiError::NotFound(_))));
}

#[tokio::test]
async fn what_an_api_server_refuses_is_refused_with_causes() {
    let case = Case::new(&[]);
    let registry = FolderRegistry::new(case.open());
    let mut wrong = spec("");
    wrong.aggregation = Aggregation::Sum;
    let refused = registry.create(&caller(), Meter::new("../m", wrong)).await.unwrap_err();
    let ApiError::Upstream { status: 422, causes, .. } = refused else { panic!("{refused:?}") };
    let fields: Vec<_> = causes.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["metadata.name", "spec.eventType", "spec.valueProperty"]);
    for name in ["", "A", "-a", "a-", "a..b", "a/b", &"a".repeat(64)] {
        assert!(registry.create(&caller(), Meter::new(name, spec("a"))).await.is_err(), "{name}");
    }
    let outside = Caller::trusted("../x");
    assert!(registry.create(&outside, Meter::new("m", spec("a"))).await.is_err());
    let mut twice = Customer::new("c", Default::default());
    twice.spec.subjects = vec!["a".to_owned(), "a".to_owned(), "\n".to_owned()];
    let refused = registry.create(&caller(), twice).await.unwrap_err().to_string();
    assert!(refused.contains("spec.subjects[1]: \"a\" is in the list twice") && refused.contains("spec.subjects[2]"), "{refused}");
    assert_eq!(std::fs::read_dir(case.manifests.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_update_changes_one_document_only() {
    let before = "# Our meters.\n---\n# kept\n";
    let file = [
        before,
        &meter("m", "a").replace("metadata:", "metadata:\n  labels: {team: x}"),
        "--- # the other\n",
        &customer("acme"),
        "---\n# nothing\n",
    ]
    .concat();
    let case = Case::new(&[("all.yaml", &file)]);
    let registry = FolderRegistry::new(case.open());
    let current: Meter = registry.get(&caller(), "m").await.unwrap();
    let mut next = Meter::new("m", spec("b"));
    next.metadata.resource_version = current.resource_version();
    let edited = registry.replace(&caller(), next.clone()).await.unwrap();
    assert_eq!((edited.uid(), edited.metadata.generation, edited.labels()["team"].as_str()), (current.uid(), Some(2), "x"));
    let text = case.read("all.yaml");
    let after = ["--- # the other\n", &customer("acme"), "---\n# nothing\n"].concat();
    assert!(text.starts_with(before) && text.ends_with(&after), "{text}");
    assert!(text.contains("eventType: b") && text.contains("team: x"), "{text}");

    let stale = registry.replace(&caller(), next).await.unwrap_err();
    assert!(matches!(&stale, ApiError::Conflict(why) if why.contains("resourceVersion")), "{stale}");
    assert!(matches!(registry.replace(&caller(), Meter::new("x", spec("b"))).await, Err(ApiError::NotFound(_))));
    let refused = registry.replace(&caller(), Meter::new("m", spec(""))).await.unwrap_err();
    assert!(matches!(refused, ApiError::Upstream { status: 422, .. }));

    registry.delete::<Meter>(&caller(), "m").await.unwrap();
    assert_eq!(case.read("all.yaml"), ["# Our meters.\n", after.as_str()].concat());
}

#[tokio::test]
async fn pages_are_in_order_and_survive_changes() {
    let all: Vec<_> = (0..25).map(|n| meter(&format!("m{n:02}"), "a")).collect();
    let case = Case::new(&[
        ("all.yaml", &all.join("---\n")),
        ("other.yaml", &meter("m99", "a").replace("name: m99", "name: m99\n  namespace: other")),
    ]);
    let registry = FolderRegistry::new(case.open());
    let (mut token, mut seen) = (None, Vec::new());
    loop {
        let page = registry.list::<Meter>(&caller(), Page { limit: Some(10), token }).await.unwrap();
        seen.extend(page.items.iter().map(ResourceExt::name_any));
        if let Some(last) = &page.next {
            registry.delete::<Meter>(&caller(), last).await.unwrap();
        }
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, (0..25).map(|n| format!("m{n:02}")).collect::<Vec<_>>());
    let whole = registry.list::<Meter>(&caller(), Page { limit: None, token: None }).await.unwrap();
    assert_eq!((whole.items.len(), whole.next), (23, None));
}

#[tokio::test]
async fn edits_of_any_kind_are_noticed() {
    let case = Case::new(&[("m.yaml", &meter("m", "a"))]);
    let folder = case.open();
    let stop = tokio_util::sync::CancellationToken::new();
    let watch = tokio::spawn({
        let (folder, stop) = (folder.clone(), stop.clone());
        async move { folder.watch(&stop).await }
    });
    let becomes = async |event_type: &str| {
        let seen = async {
            while folder.snapshot().meters.first().map(|meter| meter.spec.event_type.clone()).as_deref() != Some(event_type) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.unwrap_or_else(|_| panic!("{event_type} was not noticed"));
    };
    case.write("m.yaml", &meter("m", "b"));
    becomes("b").await;
    // As editors save: aside, then over it.
    case.write(".m.yaml.swp", &meter("m", "c"));
    std::fs::rename(case.manifests.path().join(".m.yaml.swp"), case.manifests.path().join("m.yaml")).unwrap();
    becomes("c").await;
    // The folder replaced by another of the same name, and edited there.
    std::fs::rename(case.manifests.path(), case.data.path().join("aside")).unwrap();
    std::fs::create_dir(case.manifests.path()).unwrap();
    case.write("m.yaml", &meter("m", "d"));
    becomes("d").await;
    case.write("m.yaml", &meter("m", "e"));
    becomes("e").await;
    stop.cancel();
    watch.await.unwrap();
}

#[test]
fn the_examples_are_good() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let data = tempfile::tempdir().unwrap();
    let folder = Folder::open(&examples, data.path(), "default").unwrap();
    assert_eq!(lines(&folder), [""; 0]);
    let all = folder.snapshot();
    assert_eq!((all.meters.len(), all.customers.len()), (3, 3));
}
