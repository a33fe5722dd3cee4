//! The operators' side over a real unix socket, and over mutual TLS.

use std::{collections::BTreeSet, sync::Arc};

use crate::support::{Running, card::enrol, exchange, port_spec};
use outboard_broker::{clock::unix_now_s, identity::Authority, limits::API_TLS_CONNECTIONS_MAX};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

const ID: &str = "6f9619ff-8b86-4011-b42d-00cf4fc964ff";
const OTHER_ID: &str = "6f9619ff-8b86-4011-b42d-00cf4fc96400";

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_has_one_effect_and_one_answer() {
    let running = Running::start().await;
    let api = running.client();
    api.token("local", "SN1").await;
    api.network().await;
    let spec = port_spec("vm1", 1);
    let first = api.send("PUT", "/v1/ports/vm1", &spec, Some(ID)).await;
    assert_eq!(first.0, 200);
    api.change("DELETE", "/v1/ports/vm1", "").await;
    // The repeat is answered from the record: it does not make the port again.
    assert_eq!(api.send("PUT", "/v1/ports/vm1", &spec, Some(ID)).await, first);
    assert_eq!(api.get("/v1/ports").await, json!([]));
    // The same id for anything else is a conflict: another body, another path, another method.
    let other = port_spec("vm1", 2);
    for (method, path, body) in [
        ("PUT", "/v1/ports/vm1", &other),
        ("PUT", "/v1/ports/vm2", &port_spec("vm2", 1)),
        ("DELETE", "/v1/ports/vm1", &spec),
    ] {
        let (status, answer) = api.send(method, path, body, Some(ID)).await;
        assert_eq!(
            (status, &answer["error"]["code"]),
            (409, &"operation_conflict".into()),
            "{method} {path}"
        );
    }
    assert_eq!(api.send("PUT", "/v1/ports/vm1", &spec, Some(OTHER_ID)).await.0, 200);
    assert_eq!(api.get("/v1/ports").await[0]["spec"]["name"], "vm1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_operation_stays_refused() {
    let running = Running::start().await;
    let api = running.client();
    api.token("local", "SN1").await;
    let spec = port_spec("vm1", 1);
    let refused = api.send("PUT", "/v1/ports/vm1", &spec, Some(ID)).await;
    assert_eq!(refused.1["error"]["code"], "unknown_network");
    api.network().await;
    // A late repeat must not do what its sender was told would not happen.
    assert_eq!(api.send("PUT", "/v1/ports/vm1", &spec, Some(ID)).await, refused);
    assert_eq!(api.send("PUT", "/v1/ports/vm1", &spec, Some(OTHER_ID)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_are_remembered_over_a_restart_and_secrets_are_not() {
    let running = Running::start().await;
    let api = running.client();
    let body = r#"{"serial":"SN1"}"#;
    let (status, token) = api.send("POST", "/v1/cards/local/enrol", body, Some(ID)).await;
    assert_eq!(status, 200);
    let network = r#"{"name":"blue"}"#;
    let made = api.send("PUT", "/v1/networks/blue", network, Some(OTHER_ID)).await;
    let (directory, stopping) = running.stop().await;
    tokio::task::spawn_blocking(|| stopping.finish()).await.unwrap();

    let store = std::fs::read(directory.path().join("state/broker.redb")).unwrap();
    let token = token["token"].as_str().unwrap();
    assert!(!contains(&store, &token.as_bytes()[5..]), "the store holds a token");
    let running = Running::start_in(directory).await;
    let api = running.client();
    assert_eq!(
        api.send("PUT", "/v1/networks/blue", network, Some(OTHER_ID)).await,
        made
    );
    let (status, answer) = api.send("POST", "/v1/cards/local/enrol", body, Some(ID)).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &"result_not_kept".into()));
    assert!(
        enrol(token, "SN1").await.is_err(),
        "the token names the former broker's port"
    );
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_what_is_wrong_and_what_to_do() {
    let running = Running::start().await;
    let api = running.client();
    api.token("local", "SN1").await;
    api.network().await;
    api.port("vm1", 1).await;
    let port = |from: &str, to: &str| port_spec("vm2", 2).replace(from, to);
    let cases = [
        (
            "PUT",
            "/v1/ports/vm2",
            port(r#""network""#, r#""colour":1,"network""#),
            422,
            "bad_body",
        ),
        ("PUT", "/v1/ports/vm2", "{".to_owned(), 422, "bad_body"),
        ("PUT", "/v1/ports/vm2", port_spec("vm3", 3), 422, "name_mismatch"),
        ("PUT", "/v1/ports/vm2", port("00:02", "00:01"), 422, "duplicate_mac"),
        (
            "PUT",
            "/v1/ports/vm2",
            port("10.0.0.2", "10.0.0.1"),
            422,
            "duplicate_address",
        ),
        (
            "PUT",
            "/v1/ports/vm2",
            port("10.0.0.2", "10.9.0.2"),
            422,
            "address_outside_network",
        ),
        ("PUT", "/v1/ports/vm2", port("blue", "red"), 422, "unknown_network"),
        ("PUT", "/v1/ports/vm2", port("52:", "53:"), 422, "unusable_mac"),
        (
            "PUT",
            "/v1/ports/vm2",
            port(r#""network""#, r#""card":"gone","network""#),
            422,
            "unknown_card",
        ),
        ("PUT", "/v1/ports/-x", port_spec("vm2", 2), 422, "bad_name"),
        (
            "PUT",
            "/v1/volumes/d",
            r#"{"name":"d","size":"513","backend":{"memory":true}}"#.into(),
            422,
            "unusable_size",
        ),
        (
            "PUT",
            "/v1/volumes/d",
            r#"{"name":"d","size":"1MiB","backend":{}}"#.into(),
            422,
            "bad_body",
        ),
        ("GET", "/v1/ports/vm2", String::new(), 404, "not_found"),
        ("PUT", "/v1/grants/port/vm2", String::new(), 404, "not_found"),
        ("PUT", "/v1/grants/network/blue", String::new(), 404, "bad_kind"),
        ("DELETE", "/v1/networks/blue", String::new(), 409, "in_use"),
        ("DELETE", "/v1/cards/local", String::new(), 409, "in_use"),
        (
            "POST",
            "/v1/cards/x/enrol",
            r#"{"serial":"a b"}"#.into(),
            422,
            "bad_value",
        ),
        (
            "POST",
            "/v1/cards/x/enrol",
            r#"{"serial":"S","ttl_s":0}"#.into(),
            422,
            "bad_value",
        ),
        (
            "POST",
            "/v1/cards/local/enrol",
            r#"{"serial":"SN9"}"#.into(),
            409,
            "other_serial",
        ),
        ("GET", "/v1/nothing", String::new(), 404, "unknown_path"),
        ("POST", "/v1/ports", String::new(), 405, "unknown_method"),
    ];
    for (method, path, body, status, code) in cases {
        let (got, error) = api.refused(method, path, &body).await;
        assert_eq!(
            (got, error["code"].as_str().unwrap()),
            (status, code),
            "{method} {path} {body}: {error}"
        );
    }
    let (status, answer) = api
        .send("PUT", "/v1/ports/vm2", &port_spec("vm2", 2), Some("no-uuid"))
        .await;
    assert_eq!((status, &answer["error"]["code"]), (422, &"bad_operation_id".into()));
    let (_, error) = api.refused("PUT", "/v1/ports/vm2", &port("00:02", "00:01")).await;
    assert_eq!(error["object"], "port vm2");
    assert!(error["message"].as_str().unwrap().contains("vm1"), "{error}");
    // What was refused left nothing behind, and what is right still passes.
    assert_eq!(api.get("/v1/ports").await.as_array().unwrap().len(), 1);
    api.port("vm2", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_bound_is_refused() {
    let running = Running::start().await;
    let api = running.client();
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(outboard_api::BODY_LEN_MAX));
    let (status, error) = api.refused("PUT", "/v1/networks/blue", &long).await;
    assert_eq!((status, &error["code"]), (413, &"body_too_long".into()));
    api.network().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_what_is_gone_succeeds() {
    let running = Running::start().await;
    let api = running.client();
    for path in ["/v1/ports/x", "/v1/volumes/x", "/v1/networks/x", "/v1/cards/x"] {
        assert_eq!(api.send("DELETE", path, "", None).await.0, 204, "{path}");
    }
}

fn topology(ports: &[(&str, u8)]) -> String {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(n, h)| serde_json::from_str(&port_spec(n, *h)).unwrap())
        .collect();
    json!({"network": [{"name": "blue", "subnets": ["10.0.0.0/24"]}], "port": ports}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_a_topology_is_declarative_and_all_or_nothing() {
    let running = Running::start().await;
    let api = running.client();
    api.token("local", "SN1").await;
    let two = topology(&[("vm1", 1), ("vm2", 2)]);
    let would = api.change("POST", "/v1/topology/diff", &two).await;
    assert_eq!(would.as_array().unwrap().len(), 3);
    assert_eq!(api.get("/v1/ports").await, json!([]), "a diff changes nothing");
    assert_eq!(api.change("PUT", "/v1/topology", &two).await, would);
    assert_eq!(
        api.change("PUT", "/v1/topology", &two).await,
        json!([]),
        "applying again changes nothing"
    );
    api.port("byhand", 9).await;

    // vm2 goes, vm3 comes, byhand stays; one bad port and nothing happens at all.
    let next = topology(&[("vm1", 1), ("vm3", 3)]);
    let (status, _) = api
        .refused("PUT", "/v1/topology", &topology(&[("vm3", 3), ("vm4", 9)]))
        .await;
    assert_eq!(status, 422);
    assert_eq!(names(&api.get("/v1/ports").await), ["byhand", "vm1", "vm2"]);
    let done = api.change("PUT", "/v1/topology", &next).await;
    assert_eq!(done.as_array().unwrap().len(), 2, "{done}");
    assert_eq!(names(&api.get("/v1/ports").await), ["byhand", "vm1", "vm3"]);
}

fn names(views: &Value) -> Vec<&str> {
    views
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["spec"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_describes_every_route() {
    let running = Running::start().await;
    let document = running.client().get("/v1/openapi.json").await;
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        described.extend(
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(|m| format!("{} {path}", m.to_uppercase())),
        );
    }
    let named = |kind: &str| {
        [
            format!("GET /v1/{kind}"),
            format!("GET /v1/{kind}/{{name}}"),
            format!("PUT /v1/{kind}/{{name}}"),
            format!("DELETE /v1/{kind}/{{name}}"),
        ]
    };
    let mut expected: BTreeSet<String> = ["networks", "groups", "address-sets", "ports", "volumes"]
        .into_iter()
        .flat_map(named)
        .collect();
    expected.extend(
        [
            "GET /v1/health",
            "GET /v1/openapi.json",
            "GET /metrics",
            "GET /v1/cards",
            "GET /v1/cards/{name}",
            "DELETE /v1/cards/{name}",
            "POST /v1/cards/{name}/enrol",
            "GET /v1/grants",
            "PUT /v1/grants/{kind}/{name}",
            "DELETE /v1/grants/{kind}/{name}",
            "GET /v1/bindings",
            "POST /v1/groups/{name}/rules",
            "DELETE /v1/groups/{name}/rules/{rule}",
            "POST /v1/operators/{name}",
            "GET /v1/cards/{name}/reasons",
            "GET /v1/explain/{kind}/{name}",
            "POST /v1/ports/{name}/trace",
            "POST /v1/ports/{name}/captures",
            "GET /v1/cards/{card}/captures/{id}/after/{number}",
            "DELETE /v1/cards/{card}/captures/{id}",
            "POST /v1/flows/list",
            "POST /v1/flows/flush",
            "POST /v1/topology/diff",
            "PUT /v1/topology",
        ]
        .map(str::to_owned),
    );
    assert_eq!(described, expected);
    // And each is really served: whatever it answers, it is not "there is nothing at …".
    for route in &described {
        let (method, path) = route.split_once(' ').unwrap();
        let path = path.replace("{name}", "x").replace("{kind}", "port");
        let (status, answer) = running.client().send(method, &path, "", None).await;
        assert!(
            status != 405 && answer["error"]["code"] != "unknown_path",
            "{route}: {status} {answer}"
        );
    }
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split(r##""$ref":"#/components/schemas/"##).skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name} is not described"
        );
    }
}

struct Operator {
    address: String,
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Operator {
    fn new(running: &Running, credentials: &Value) -> Self {
        let pem = |key: &str| credentials[key].as_str().unwrap().as_bytes().to_vec();
        Self {
            address: running.broker.api_address.unwrap().to_string(),
            ca: CertificateDer::from_pem_slice(&pem("ca")).unwrap(),
            certificate: CertificateDer::from_pem_slice(&pem("certificate")).unwrap(),
            key: PrivateKeyDer::from_pem_slice(&pem("key")).unwrap(),
        }
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .unwrap();
        let stream = TcpStream::connect(&self.address).await?;
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_come_over_mutual_tls_with_certificates_of_their_kind_only() {
    let running = Running::start().await;
    let api = running.client();
    let operator = Operator::new(&running, &api.change("POST", "/v1/operators/ann", "").await);
    let (status, health) = exchange(operator.connect().await.unwrap(), "GET", "/v1/health", "", None).await;
    assert_eq!((status, &health["broker_epoch"]), (200, &1.into()));

    // No operator makes operators.
    let stream = operator.connect().await.unwrap();
    let (status, answer) = exchange(stream, "POST", "/v1/operators/eve", "", None).await;
    assert_eq!((status, &answer["error"]["code"]), (403, &"local_only".into()));

    // A card's certificate is signed by the same authority and yet lets nobody in.
    let card = enrol(&api.token("local", "SN1").await, "SN1").await.unwrap();
    let pem = card.key.serialize_pem();
    let card = Operator {
        certificate: card.certificate.clone(),
        key: PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap(),
        ca: operator.ca.clone(),
        address: operator.address.clone(),
    };
    assert!(is_shut_out(&card).await);

    // Nor does one that another authority signed.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::load_or_create(elsewhere.path(), unix_now_s()).unwrap();
    let (issued, key) = stranger.issue_operator(&"ann".parse().unwrap(), unix_now_s()).unwrap();
    let stranger = Operator {
        certificate: issued.certificate,
        key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        ca: operator.ca.clone(),
        address: operator.address.clone(),
    };
    assert!(is_shut_out(&stranger).await);

    // A later certificate of the same name replaces the former.
    let next = Operator::new(&running, &api.change("POST", "/v1/operators/ann", "").await);
    let (status, answer) = exchange(operator.connect().await.unwrap(), "GET", "/v1/health", "", None).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (403, &"certificate_replaced".into())
    );
    assert_eq!(
        exchange(next.connect().await.unwrap(), "GET", "/v1/health", "", None)
            .await
            .0,
        200
    );
}

/// Whether the TLS layer turns the peer away: in the handshake, or at the first read after it.
async fn is_shut_out(operator: &Operator) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = operator.connect().await else {
        return true;
    };
    let _ = stream.write_all(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut first = [0];
    !matches!(stream.read(&mut first).await, Ok(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_strangers_on_the_operators_port_keep_no_operator_out() {
    use tokio::io::AsyncReadExt;
    let running = Running::start().await;
    let api = running.client();
    let operator = Operator::new(&running, &api.change("POST", "/v1/operators/ann", "").await);
    let asks = async || {
        exchange(operator.connect().await.unwrap(), "GET", "/v1/health", "", None)
            .await
            .0
    };
    assert_eq!(asks().await, 200);
    let kept = operator.connect().await.unwrap();

    // More than the port serves at all, and none of them says a word.
    let mut strangers = Vec::new();
    for _ in 0..2 * API_TLS_CONNECTIONS_MAX {
        strangers.push(TcpStream::connect(&operator.address).await.unwrap());
    }
    assert_eq!(asks().await, 200);
    let mut nothing = [0];
    assert_eq!(
        strangers[0].read(&mut nothing).await.unwrap_or(0),
        0,
        "the oldest was closed"
    );
    let newest = strangers.last_mut().unwrap();
    let silent = tokio::time::timeout(std::time::Duration::from_millis(50), newest.read(&mut nothing)).await;
    assert!(silent.is_err(), "the newest was not");
    assert_eq!(
        exchange(kept, "GET", "/v1/health", "", None).await.0,
        200,
        "nor an operator's"
    );
    drop(strangers);
    assert_eq!(asks().await, 200);
}
