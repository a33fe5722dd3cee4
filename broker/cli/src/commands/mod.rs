//! Nouns and verbs that talk to a broker: one file each, with its arguments, its requests and its tables.

pub mod address_set;
pub mod apply;
pub mod binding;
pub mod capture;
pub mod card;
pub mod explain;
pub mod flow;
pub mod grant;
pub mod group;
pub mod network;
pub mod operator;
pub mod port;
pub mod status;
pub mod trace;
pub mod volume;

use serde::Serialize;
use serde_json::Value;

use crate::{error::CliError, options::Global, output};

/// Prints a view: as JSON, or as `text` makes it.
fn show<T: Serialize>(global: &Global, view: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
    if global.json {
        output::print_json(view)
    } else {
        output::print(&text(view))
    }
}

/// Prints what a change was answered with: as JSON, or one line that says it is done.
fn done(global: &Global, answer: &Value, text: &str) -> Result<(), CliError> {
    show(global, answer, |_| text.to_owned())
}

/// State of a port's or volume's binding, in a word or two.
fn binding_state(
    binding: Option<&outboard_api::binding::BindingView>,
    grant: Option<&outboard_api::grant::GrantView>,
) -> String {
    match (grant.and_then(|g| g.revocation), binding) {
        (Some(revocation), _) => format!("revocation {}", revocation.name()),
        (None, Some(binding)) => match &binding.error {
            Some(error) => format!("{} ({})", spelt(&binding.state), spelt(&error.code)),
            None => spelt(&binding.state),
        },
        (None, None) => "unbound".to_owned(),
    }
}

/// A value that is a word in JSON, as that word.
fn spelt(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

/// The lines on grant and binding that ports and volumes have in common.
fn allocation_details(
    grant: Option<&outboard_api::grant::GrantView>,
    binding: Option<&outboard_api::binding::BindingView>,
) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        (
            "granted to",
            output::or_dash(grant.filter(|g| g.revocation.is_none()).map(|g| &g.host)),
        ),
        ("state", binding_state(binding, grant)),
    ];
    if let Some(binding) = binding {
        rows.push(("host", binding.host.to_string()));
        rows.push(("function", binding::function(&binding.function)));
        rows.push(("generation", binding.generation.to_string()));
        rows.extend(binding.error.as_ref().map(|e| ("error", e.message.clone())));
    }
    rows
}

#[cfg(test)]
mod tests {
    use outboard_api::port::PortView;
    use serde_json::json;

    use super::*;

    fn port(state: &str, extra: Value) -> PortView {
        let mut view = json!({
            "spec": {"name": "vm1", "network": "blue", "mac": "52:54:00:00:00:01", "card": "local"},
            "binding": {
                "kind": "port", "name": "vm1", "host": "local", "generation": 3, "state": state,
                "function": {"card": "local", "controller": 0, "pf": 0, "function": 2, "kind": "vhost-user", "incarnation": 5},
            },
        });
        for (key, value) in extra.as_object().expect("an object") {
            view[key] = value.clone();
        }
        serde_json::from_value(view).expect("a view")
    }

    #[test]
    fn the_state_says_what_matters_most() {
        let state = |view: PortView| binding_state(view.binding.as_ref(), view.grant.as_ref());
        assert_eq!(state(port("active", json!({}))), "active");
        let revoked = json!({"kind": "port", "name": "vm1", "host": "local", "card": "local", "revocation": "pending"});
        assert_eq!(state(port("draining", json!({"grant": revoked}))), "revocation pending");
        let mut failed = port("prepared", json!({}));
        let error = json!({"code": "unavailable", "message": "file gone"});
        failed.binding.as_mut().expect("bound").error = serde_json::from_value(error).expect("an error");
        assert_eq!(state(failed), "prepared (unavailable)");
        assert_eq!(state(port("active", json!({"binding": null}))), "unbound");
    }
}
