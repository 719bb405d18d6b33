//! Options, and what is refused before anything starts.

use super::*;

#[tokio::test]
async fn a_url_with_a_password_is_refused_without_a_word_of_it() {
    let options = |url: &str| ClickhouseOptions {
        clickhouse_url: url.to_owned(),
        account: ClickhouseAccount {
            clickhouse_database: "kubemeter".to_owned(),
            clickhouse_user: "default".to_owned(),
            clickhouse_password_file: None,
            clickhouse_cluster: None,
            clickhouse_shards: None,
            clickhouse_replicas: 1,
            clickhouse_nodes: Vec::new(),
        },
    };
    assert!(options("http://clickhouse:8123").warehouse().await.is_ok());
    let why = options("http://default:hunter2@clickhouse:8123").warehouse().await.err().unwrap();
    assert!(why.contains("--clickhouse-password-file") && !why.contains("hunter2"), "{why}");
}

#[test]
fn authentication_is_on_unless_it_is_switched_off() {
    let args = |more: &[&str]| {
        let all = ["kubemeter", "gateway", "--clickhouse-url", "http://c"];
        match Cli::try_parse_from(all.iter().chain(more)).map(|cli| cli.command) {
            Ok(Command::Gateway(args)) => Some((args.insecure_no_auth, args.audience)),
            _ => None,
        }
    };
    assert_eq!(args(&[]), Some((false, "kubemeter".to_owned())));
    assert_eq!(args(&["--insecure-no-auth", "--audience", "usage"]), Some((true, "usage".to_owned())));
    assert_eq!(args(&["--audience", ""]), None, "an empty audience is the API server's");
}

#[tokio::test]
async fn a_cluster_is_said_in_full_or_refused() {
    let warehouse = async |more: &[&str]| {
        let all = ["kubemeter", "gateway", "--clickhouse-url", "http://c"];
        match Cli::try_parse_from(all.iter().chain(more)).map_err(|why| why.to_string())?.command {
            Command::Gateway(args) => args.clickhouse.warehouse().await.map(|warehouse| warehouse.topology().clone()),
            other => Err(format!("{other:?}")),
        }
    };
    assert_eq!(warehouse(&[]).await, Ok(Topology::Single));
    let nodes = vec!["http://a".to_owned(), "http://b".to_owned()];
    assert_eq!(
        warehouse(&["--clickhouse-cluster", "c", "--clickhouse-nodes", "http://a,http://b"]).await,
        Cluster::new("c".to_owned(), Some(2), nodes).map(Topology::Cluster)
    );
    assert_eq!(
        warehouse(&["--clickhouse-cluster", "c", "--clickhouse-shards", "2"]).await,
        Cluster::new("c".to_owned(), Some(2), Vec::new()).map(Topology::Cluster)
    );
    let nodes = vec!["http://a".to_owned(), "http://b".to_owned()];
    assert_eq!(
        warehouse(&["--clickhouse-cluster", "c", "--clickhouse-replicas", "2", "--clickhouse-nodes", "http://a,http://b"]).await,
        Cluster::replicated("c".to_owned(), Some(1), 2, nodes).map(Topology::Cluster)
    );
    for (more, says) in [
        (&["--clickhouse-shards", "2"][..], "--clickhouse-cluster"),
        (&["--clickhouse-replicas", "2"], "--clickhouse-cluster"),
        (&["--clickhouse-cluster", "c", "--clickhouse-shards", "1", "--clickhouse-replicas", "2"], "--clickhouse-nodes"),
        (&["--clickhouse-cluster", "c"], "--clickhouse-shards"),
        (&["--clickhouse-cluster", "c", "--clickhouse-nodes", "http://u:hunter2@a"], "--clickhouse-password-file"),
    ] {
        let why = warehouse(more).await.unwrap_err();
        assert!(why.contains(says) && !why.contains("hunter2"), "{why}");
    }
}
