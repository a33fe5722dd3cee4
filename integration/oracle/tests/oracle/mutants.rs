//! What is wrong in one thing is found, and what is printed is that thing and little else.

use outboard_oracle::{
    Failure, Side, Verdict, case, generate,
    packet::{Body, Packet},
    rules::Rules,
    shrink,
};

/// Lets pass whatever comes, unless it is what makes it angry.
struct Toy {
    angry_at: fn(&Packet) -> bool,
}

impl Side for Toy {
    fn begin(&mut self, _: &Rules) -> Result<(), Failure> {
        Ok(())
    }

    fn change(&mut self, _: &Rules) -> Result<(), Failure> {
        Ok(())
    }

    fn send(&mut self, packet: &Packet, _: u16) -> Result<Verdict, Failure> {
        Ok(if (self.angry_at)(packet) {
            Verdict::Drop
        } else {
            Verdict::Pass
        })
    }

    fn why(&self) -> Option<String> {
        Some("toy".into())
    }
}

#[test]
fn a_mismatch_is_found_and_shrunk_to_the_packet_that_matters() {
    let right = &mut Toy { angry_at: |_| false };
    let wrong = &mut Toy {
        angry_at: |packet| {
            matches!(
                packet.body,
                Body::Udp {
                    destination_port: 443,
                    ..
                }
            )
        },
    };
    let found = (0..200).find_map(|seed| {
        let case = generate::case(seed);
        let outcome = case::compare(&case, right, wrong).expect("toys work");
        outcome.mismatch.map(|mismatch| (case, mismatch))
    });
    let (case, mismatch) = found.expect("one of many cases has such a packet");
    let (small, mismatch) = shrink::smallest(&case, &mismatch, right, wrong).expect("toys work");
    let packets: Vec<&Packet> = small.packets().map(|(_, packet)| packet).collect();
    assert_eq!((packets.len(), small.steps.len(), mismatch.step), (1, 1, 0), "{small}");
    assert!(small.rules.groups.iter().all(|group| group.rules.is_empty()), "{small}");
    assert!(
        matches!(
            packets[0].body,
            Body::Udp {
                destination_port: 443,
                len: 0,
                ..
            }
        ),
        "{small}"
    );
    let text = case::explain(&small, &mismatch, ["right", "wrong"]);
    assert!(
        text.ends_with("step 0: right says pass (toy); wrong says drop (toy);\n"),
        "{text}"
    );
}

#[test]
fn a_seed_is_a_case_and_cases_differ() {
    assert_eq!(generate::case(7), generate::case(7));
    assert_ne!(generate::case(7), generate::case(8));
}
