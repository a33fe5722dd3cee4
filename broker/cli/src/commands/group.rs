//! `group`: security groups and their rules.

use clap::{Args, Subcommand, ValueEnum};
use outboard_api::{
    address_set::Prefix,
    group::{GroupSpec, GroupView, Icmp, PRIORITY_DEFAULT, Ports, Protocol, RuleSpec},
};
use outboard_protocol::{
    desired::{self, Ethertype, RuleAction},
    id::Name,
};
use serde_json::Value;

use super::{done, show, spelt};
use crate::{error::CliError, options::Global, output};

/// `outboard group`.
#[derive(Debug, Args)]
#[command(after_help = "\
A port with groups is filtered: only what a rule of one of them allows passes, and replies to it.
Without an egress rule a group lets its ports send whatever they like, unless it says --egress deny.

Examples:
  outboard group list
  outboard group add web
  outboard group rule add web --direction ingress --protocol tcp --ports 80-81 --from 0.0.0.0/0
  outboard port set vm1 --groups web")]
pub struct GroupArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All security groups
    #[command(after_help = "Examples:\n  outboard group list")]
    List,
    /// One security group: its rules and its ports
    #[command(after_help = "Examples:\n  outboard group show web")]
    Show {
        /// The group's name
        name: Name,
    },
    /// Make a security group without rules, or change what one says of egress
    #[command(after_help = "\
A group that is there keeps its rules.

Examples:
  outboard group add web
  outboard group add vault --egress deny")]
    Add {
        /// The group's name
        name: Name,
        /// What its ports may send as long as it has no egress rule
        #[arg(long, value_enum, default_value_t = Egress::Allow)]
        egress: Egress,
    },
    /// Remove a security group that no port has and no rule names
    #[command(after_help = "Examples:\n  outboard group remove web")]
    Remove {
        /// The group's name
        name: Name,
    },
    /// Rules of a group: add, remove
    Rule(RuleArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard group rule add web --direction ingress --protocol tcp --ports 80-81 --from 0.0.0.0/0
  outboard group rule remove web ingress/1")]
struct RuleArgs {
    #[command(subcommand)]
    verb: RuleVerb,
}

#[derive(Debug, Subcommand)]
enum RuleVerb {
    /// Add a rule to a group
    #[command(after_help = "\
The other side is one of --from (ingress), --to (egress), --group and --address-set; without it,
everybody. Adding a rule that the group has changes nothing.

Examples:
  outboard group rule add web --direction ingress --protocol tcp --ports 80-81 --from 0.0.0.0/0
  outboard group rule add db --direction ingress --protocol tcp --ports 5432 --group web
  outboard group rule add web --direction ingress --protocol icmp --icmp 8/0 --action reject --priority 10")]
    Add(Box<RuleAddArgs>),
    /// Remove a rule from a group
    #[command(after_help = "\
'outboard group show' tells what the rules are called. The numbers of those behind it change.

Examples:
  outboard group rule remove web http
  outboard group rule remove web ingress/2")]
    Remove {
        /// The group's name
        group: Name,
        /// What the rule is called: its name, or its direction and number
        rule: String,
    },
}

#[derive(Debug, Args)]
struct RuleAddArgs {
    /// The group's name
    group: Name,
    /// What its ports receive, or what they send
    #[arg(long, value_enum)]
    direction: Direction,
    /// any, tcp, udp, icmp (ICMPv6 with IPv6) or the number of an IP protocol
    #[arg(long, default_value = "any")]
    protocol: Protocol,
    /// Destination ports, with tcp and udp [default: all]
    #[arg(long, value_name = "FIRST[-LAST]")]
    ports: Option<Ports>,
    /// ICMP type and code, with icmp [default: all]
    #[arg(long, value_name = "TYPE[/CODE]")]
    icmp: Option<Icmp>,
    /// Ingress: from this subnet
    #[arg(long, value_name = "CIDR")]
    from: Option<Prefix>,
    /// Egress: to this subnet
    #[arg(long, value_name = "CIDR")]
    to: Option<Prefix>,
    /// The other side is a port with this group
    #[arg(long = "group", value_name = "GROUP")]
    peer_group: Option<Name>,
    /// The other side is in this address set
    #[arg(long, value_name = "SET")]
    address_set: Option<Name>,
    /// IP version [default: that of the subnet, or both]
    #[arg(long, value_enum)]
    ethertype: Option<IpVersion>,
    /// What to do
    #[arg(long, value_enum, default_value_t = Action::Allow)]
    action: Action,
    /// Lower comes first
    #[arg(long, default_value_t = PRIORITY_DEFAULT)]
    priority: u16,
    /// Log the connections that it decides
    #[arg(long)]
    log: bool,
    /// What to call it [default: its direction and number]
    #[arg(long)]
    name: Option<Name>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Egress {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Direction {
    Ingress,
    Egress,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Allow,
    Deny,
    Reject,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IpVersion {
    Ipv4,
    Ipv6,
    Both,
}

impl RuleAddArgs {
    fn spec(&self) -> RuleSpec {
        RuleSpec {
            direction: match self.direction {
                Direction::Ingress => desired::Direction::Ingress,
                Direction::Egress => desired::Direction::Egress,
            },
            protocol: self.protocol,
            ports: self.ports,
            icmp: self.icmp,
            from: self.from,
            to: self.to,
            group: self.peer_group.clone(),
            address_set: self.address_set.clone(),
            ethertype: self.ethertype.map(|version| match version {
                IpVersion::Ipv4 => Ethertype::Ipv4,
                IpVersion::Ipv6 => Ethertype::Ipv6,
                IpVersion::Both => Ethertype::Both,
            }),
            action: match self.action {
                Action::Allow => RuleAction::Allow,
                Action::Deny => RuleAction::Deny,
                Action::Reject => RuleAction::Reject,
            },
            priority: self.priority,
            log: self.log,
            name: self.name.clone(),
        }
    }
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses.
pub async fn run(global: &Global, args: &GroupArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List => {
            let groups: Vec<GroupView> = client.get("/v1/groups").await?;
            show(global, &groups, |groups| table(groups))
        }
        Verb::Show { name } => show(global, &client.get(&format!("/v1/groups/{name}")).await?, details),
        Verb::Add { name, egress } => {
            let groups: Vec<GroupView> = client.get("/v1/groups").await?;
            let rules = groups.into_iter().find(|g| g.spec.name == *name).map(|g| g.spec.rules);
            let spec = GroupSpec {
                name: name.clone(),
                egress: match egress {
                    Egress::Allow => desired::Egress::Allow,
                    Egress::Deny => desired::Egress::Deny,
                },
                rules: rules.unwrap_or_default(),
            };
            let answer: Value = client.put(&format!("/v1/groups/{name}"), &spec).await?;
            done(global, &answer, &format!("group {name} is declared"))
        }
        Verb::Remove { name } => {
            let answer: Value = client.delete(&format!("/v1/groups/{name}")).await?;
            done(global, &answer, &format!("group {name} removed"))
        }
        Verb::Rule(RuleArgs { verb }) => match verb {
            RuleVerb::Add(args) => {
                let rule = args.spec();
                let answer: Value = client.post(&format!("/v1/groups/{}/rules", args.group), &rule).await?;
                done(global, &answer, &format!("group {} has the rule: {rule}", args.group))
            }
            RuleVerb::Remove { group, rule } => {
                let path = format!("/v1/groups/{group}/rules/{}", in_path(rule));
                let answer: Value = client.delete(&path).await?;
                done(global, &answer, &format!("rule {rule} removed from group {group}"))
            }
        },
    }
}

/// A text as one segment of a path (RFC 3986 §2.1 and §3.3).
fn in_path(text: &str) -> String {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().fold(String::new(), |mut path, b| {
        if unreserved(b) {
            path.push(char::from(b));
        } else {
            path.push_str(&format!("%{b:02X}"));
        }
        path
    })
}

fn table(groups: &[GroupView]) -> String {
    let row = |g: &GroupView| {
        [
            g.spec.name.to_string(),
            spelt(&g.spec.egress),
            g.spec.rules.len().to_string(),
            output::list(&g.ports),
            output::list(&g.named_by),
        ]
    };
    let nothing = "There are no security groups. Make one with: outboard group add NAME";
    let header = ["GROUP", "EGRESS", "RULES", "PORTS", "NAMED BY GROUPS"];
    output::table(header, groups.iter().map(row).collect(), nothing)
}

fn details(group: &GroupView) -> String {
    let spec = &group.spec;
    let has_egress_rule = spec.rules.iter().any(|r| r.direction == desired::Direction::Egress);
    let egress = match spec.egress {
        _ if has_egress_rule => "as its egress rules say".to_owned(),
        desired::Egress::Allow => "allow: everything, for it has no egress rule".to_owned(),
        desired::Egress::Deny => "deny: nothing but replies, for it has no egress rule".to_owned(),
    };
    let rows = vec![
        ("group", spec.name.to_string()),
        ("egress", egress),
        ("ports", output::list(&group.ports)),
        ("named by groups", output::list(&group.named_by)),
    ];
    let rules = spec.rules.iter().zip(&group.rule_ids);
    let rules = rules.map(|(rule, id)| {
        [
            id.clone(),
            spelt(&rule.direction),
            spelt(&rule.desired().ethertype),
            rule.protocol.to_string(),
            output::or_dash(rule.what()),
            rule.peer(),
            spelt(&rule.action),
            rule.priority.to_string(),
            if rule.log { "yes" } else { "-" }.to_owned(),
        ]
    });
    let header = [
        "RULE",
        "DIRECTION",
        "IP",
        "PROTOCOL",
        "PORTS/ICMP",
        "OTHER SIDE",
        "ACTION",
        "PRIORITY",
        "LOG",
    ];
    let nothing = "It has no rules: nothing comes in. Add one with: outboard group rule add NAME --direction ingress …";
    format!(
        "{}\n\n{}",
        output::details(rows),
        output::table(header, rules.collect(), nothing)
    )
}
