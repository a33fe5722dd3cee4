//! Puts the broker together: state directory, store, authority, core, listeners.

use std::{fs, net::SocketAddr, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, thread::JoinHandle};

use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    api::{Api, bind_unix, router, serve_tls, serve_unix},
    cards::{CardServer, Inquiries},
    clock::unix_now_s,
    config::Config,
    core::{Core, CoreHandle, OpenError, spawn},
    error::StartError,
    identity::{Authority, ServerTls, write_private},
    store::{Store, store_path},
};

/// A running broker.
pub struct Broker {
    /// Where cards connect.
    pub card_address: SocketAddr,
    /// Where operators connect over TLS, if they do.
    pub api_address: Option<SocketAddr>,
    listeners: JoinSet<()>,
    handle: CoreHandle,
    core: JoinHandle<()>,
}

impl Broker {
    /// Starts everything that `config` asks for. When it returns, both sides can connect.
    ///
    /// # Errors
    /// Whatever is in the way, with its remedy.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let state_dir = &config.state_dir;
        let fix = "give state_dir a path that the broker's user may write";
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
        made.map_err(|e| StartError::io("make state_dir", state_dir, &e, fix))?;

        // The store's lock comes first: two brokers must not both think that the directory is theirs.
        let core = open_core(state_dir)?;
        let authority = Arc::new(Authority::load_or_create(state_dir, unix_now_s())?);

        let cards = listen("card_listen", config.card_listen).await?;
        let operators = match config.api_listen {
            Some(address) => Some(listen("api_listen", address).await?),
            None => None,
        };
        let card_address = local(&cards)?;
        let told = config.card_address.clone().unwrap_or_else(|| card_address.to_string());
        let tls = ServerTls::new(authority.clone(), hosts(&told, config))?;

        let socket = bind_unix(&config.api_socket)?;
        let (core, thread) = spawn(core).map_err(|e| {
            StartError::new(
                format!("cannot start the core's thread: {e}"),
                "raise the limit of threads",
            )
        })?;
        let inquiries = Inquiries::default();
        let api = Api {
            core: core.clone(),
            inquiries: inquiries.clone(),
            authority: authority.clone(),
            card_address: told.as_str().into(),
        };
        let (routes, _) = router(api);

        let mut listeners = JoinSet::new();
        let server = CardServer {
            core: core.clone(),
            authority,
            tls: tls.for_cards()?,
            inquiries,
        };
        listeners.spawn(server.serve(cards));
        let mut api_address = None;
        if let Some(listener) = operators {
            api_address = Some(local(&listener)?);
            listeners.spawn(serve_tls(listener, tls.for_operators()?, routes.clone()));
        }
        // Both listeners are bound, and the API answers only after this: whoever sees either finds the other.
        let tell = |name: &str, address: &str| {
            let path = state_dir.join(name);
            write_private(&path, format!("{address}\n").as_bytes()).map_err(|e| StartError::io("write", &path, &e, fix))
        };
        if let Some(address) = api_address {
            tell("api_address", &address.to_string())?;
        }
        tell("card_address", &told)?;
        listeners.spawn(serve_unix(socket, routes));
        tracing::info!(cards = told, api = %config.api_socket.display(), "the broker is running");
        Ok(Self {
            card_address,
            api_address,
            listeners,
            handle: core,
            core: thread,
        })
    }

    /// Waits until the broker cannot go on: its core has panicked, which the lines before it in the log tell about.
    pub async fn broken(&self) -> StartError {
        self.handle.ended().await;
        StartError::new(
            "the core's thread ended by itself",
            "start the broker again, and report the lines above",
        )
    }

    /// Stops listening. The core ends once the last connection has; see [`Stopping::finish`].
    pub async fn stop(mut self) -> Stopping {
        self.listeners.shutdown().await;
        Stopping { core: self.core }
    }
}

/// A broker that accepts nobody any more.
pub struct Stopping {
    core: JoinHandle<()>,
}

impl Stopping {
    /// Waits for the core to close the store. Call it when the runtime, and with it every connection, is gone.
    pub fn finish(self) {
        if self.core.join().is_err() {
            tracing::error!("the core's thread panicked");
        }
    }
}

fn open_core(state_dir: &Path) -> Result<Core, StartError> {
    let path = store_path(state_dir);
    let store = Store::open(&path).map_err(|e| e.at_start(&path))?;
    Core::open(store).map_err(|error| match error {
        OpenError::Store(error) => error.at_start(&path),
        other => StartError::new(
            format!("the store {} cannot be taken up: {other}", path.display()),
            "put back a backup, or start the version of outboard-broker that wrote it",
        ),
    })
}

/// Names and addresses that the broker's certificate is valid for, beside its TLS name.
fn hosts(told: &str, config: &Config) -> Vec<String> {
    let mut hosts = Vec::new();
    if let Some((host, _)) = told.rsplit_once(':') {
        hosts.push(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    }
    for address in [Some(config.card_listen), config.api_listen].into_iter().flatten() {
        if !address.ip().is_unspecified() {
            hosts.push(address.ip().to_string());
        }
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

async fn listen(key: &str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|e| {
        let fix = format!("give {key} an address of this machine and a free port");
        StartError::new(format!("cannot listen on {key} {address}: {e}"), fix)
    })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|e| StartError::new(format!("a listener has no address: {e}"), "report this"))
}
