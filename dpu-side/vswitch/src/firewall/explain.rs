//! What the firewall would say of a packet, and why, without changing anything.

use outboard_conntrack::{Direction, Table, Verdict};
use outboard_firewall::{Direction as Way, Judgement, RuleId};
use vhost_net_dpu::packet::Fragment;

use super::{Allowed, Denial, Firewall, Question, Sight, datagrams::Datagrams, refusal, stage::later, tracked};
use crate::{policy::Rules, reason::DropReason};

/// One of those that were asked, and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) layer: &'static str,
    pub(crate) detail: String,
    pub(crate) rule: Option<String>,
    /// It is against the packet.
    pub(crate) denial: Option<Denial>,
}

impl Firewall {
    /// What traffic would be told about a packet for one port, by whom.
    pub(crate) fn explain(&self, question: &Question<'_>, datagrams: &Datagrams) -> Vec<Said> {
        self.uncharged(|| self.explain_one(question, datagrams))
    }

    fn explain_one(&self, question: &Question<'_>, datagrams: &Datagrams) -> Vec<Said> {
        let Some(table) = self.table.as_deref() else {
            return Vec::new();
        };
        match question.record.fragment {
            Fragment::Later => vec![said("fragments", later(question, datagrams))],
            Fragment::No if question.is_icmp_error() => {
                vec![said("connections", self.related(table, question).map(|_| ()))]
            }
            Fragment::No | Fragment::First => self.explain_connection(table, question),
        }
    }

    fn explain_connection(&self, table: &Table, question: &Question<'_>) -> Vec<Said> {
        let key = table.key(question.tuple);
        let packet = match tracked::packet(question.record, question.head) {
            Ok(packet) => packet,
            Err(_) => return vec![said("connections", Err(DropReason::CtInvalid.into()))],
        };
        match self.look(table, (&key, &packet), question) {
            Ok(Sight::Known { found, judged }) => {
                let verdict = table.preview(found.entry, found.direction, &packet, question.now);
                let outcome = match verdict {
                    Verdict::Invalid(_) => Err(DropReason::CtInvalid.into()),
                    Verdict::Ok | Verdict::Reopens | Verdict::Gone => Ok(()),
                };
                let way = match found.direction {
                    Direction::Original => "as it was opened",
                    Direction::Reply => "in reply",
                };
                let policy = if judged.is_some() {
                    ", judged again under a new policy"
                } else {
                    ""
                };
                let mut connection = said("connections", outcome);
                connection.detail = format!(
                    "of a connection that is {}, {way}{policy}{}",
                    found.state.name(),
                    connection.detail
                );
                vec![connection]
            }
            Ok(Sight::New(allowed)) => {
                let room = table.preview_open(&key, question.pair().from.port, &packet, question.now);
                let mut steps = vec![said("connections", Ok(()))];
                steps.extend(self.explain_rules(question, Ok(allowed)));
                "of no connection: it opens one".clone_into(&mut steps[0].detail);
                if let Err(refused) = room {
                    steps.push(said("connections", Err(refusal(refused).into())));
                }
                steps
            }
            Err(denial) if denial.reason == DropReason::CtInvalid => vec![said("connections", Err(denial))],
            Err(denial) => {
                let mut steps = vec![said("connections", Ok(()))];
                let what = if denial.ends.is_some() {
                    "of a connection that the policy allows no more: it ends"
                } else {
                    "of no connection"
                };
                what.clone_into(&mut steps[0].detail);
                steps.extend(self.explain_rules(question, Err(denial)));
                steps
            }
        }
    }

    /// The rules of both ends that decided.
    fn explain_rules(&self, question: &Question<'_>, outcome: Result<Allowed, Denial>) -> Vec<Said> {
        let step = |layer, port: &Rules, rule, denial: Option<Denial>| {
            let rule = self.rule_name(rule);
            let detail = match (&denial, &rule, port.filter.filtered) {
                (_, _, false) => "the port has no security groups: it is not filtered".to_owned(),
                (None, Some(rule), _) => format!("allowed by {rule}"),
                (None, None, _) => "allowed".to_owned(),
                (Some(denial), ..) => denial.reason.describe().to_owned(),
            };
            Said {
                layer,
                detail,
                rule,
                denial,
            }
        };
        let (egress, ingress) = (question.from, question.to);
        match outcome {
            Ok(allowed) => vec![
                step("egress rules", egress, allowed.egress, None),
                step("ingress rules", ingress, allowed.ingress, None),
            ],
            Err(denial) if denial.reason.at_receiver() => {
                let first = self
                    .ask(question.tuple, egress, Way::Egress)
                    .unwrap_or(Judgement::UNFILTERED);
                vec![
                    step("egress rules", egress, first.rule, None),
                    step("ingress rules", ingress, denial.rule, Some(denial)),
                ]
            }
            Err(denial) => vec![step("egress rules", egress, denial.rule, Some(denial))],
        }
    }

    /// What the sender of a packet for a group would be told.
    pub(crate) fn explain_group(&self, question: &Question<'_>) -> Said {
        let outcome = self.uncharged(|| self.flood(question, true));
        self.said_of_group("egress rules", outcome.map(|allowed| allowed.and_then(|a| a.egress)))
    }

    /// What would be said of one for a receiver.
    pub(crate) fn explain_member(&self, question: &Question<'_>) -> Said {
        let judgement = self.uncharged(|| self.ask(question.tuple, question.to, Way::Ingress));
        self.said_of_group("ingress rules", judgement.map(|judgement| judgement.rule))
    }

    fn said_of_group(&self, layer: &'static str, outcome: Result<Option<RuleId>, Denial>) -> Said {
        let rule = match &outcome {
            Ok(rule) => *rule,
            Err(denial) => denial.rule,
        };
        Said {
            rule: self.rule_name(rule),
            ..said(layer, outcome.map(|_| ()))
        }
    }

    fn rule_name(&self, rule: Option<RuleId>) -> Option<String> {
        Some(self.policy.rule(rule?)?.name)
    }
}

fn said(layer: &'static str, outcome: Result<(), Denial>) -> Said {
    let detail = match &outcome {
        Ok(()) => String::new(),
        Err(denial) => denial.reason.describe().to_owned(),
    };
    Said {
        layer,
        detail,
        rule: None,
        denial: outcome.err(),
    }
}
