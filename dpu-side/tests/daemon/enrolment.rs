//! Enrolment against the right broker and against wrong ones.

use dpu_side::{enrolment::enrol, error::Failure, identity, identity::Identity};
use outboard_protocol::{
    card::{FromBroker, FromCard},
    refusal::{Code, Refusal},
    token::EnrolToken,
};

use crate::{
    broker::{Authority, Broker},
    fixture::{CARD, Card, name},
};

/// What a broker says to a signing request.
type Answer = fn(&Broker, &[u8]) -> FromBroker;

/// Enrols with `token` while `broker` answers with `answer`.
fn attempt(card: &Card, token: &EnrolToken, broker: Broker, answer: Answer) -> Result<Identity, Failure> {
    let serving = std::thread::spawn(move || {
        let mut stream = broker.accept();
        let is_enrol = |m: &FromCard| match m {
            FromCard::Enrol { secret, csr, .. } if *secret == [7; 32] => Some(csr.clone()),
            _ => None,
        };
        // A card that does not trust this broker hangs up first.
        while stream.listen() {
            if let Some(csr) = stream.heard.iter().find_map(is_enrol) {
                stream.say(&answer(&broker, &csr));
                break;
            }
        }
        while stream.listen() {}
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let result = runtime.block_on(enrol(&card.config, &token.print()));
    serving.join().unwrap();
    result
}

fn unenrolled() -> Card {
    let card = Card::new();
    std::fs::remove_file(identity::path(&card.config.state_dir)).unwrap();
    card
}

#[test]
fn a_token_becomes_an_identity() {
    let card = unenrolled();
    let broker = Broker::new(&card.authority);
    let token = broker.token();
    let identity = attempt(&card, &token, broker, Broker::enrolled).unwrap();
    assert_eq!((identity.card.as_str(), &identity.broker), (CARD, &token.broker));
    let saved = Identity::load(&card.config.state_dir).unwrap();
    assert_eq!(saved.key, identity.key);
    card.start().stop();
}

#[test]
fn p04_a_broker_of_another_authority_learns_no_secret() {
    let card = unenrolled();
    let impostor = Broker::new(&Authority::new());
    let mut token = impostor.token();
    token.ca_sha256 = card.authority.sha256();
    // It would see the secret in its log of what it heard; the handshake fails before that.
    let error = attempt(&card, &token, impostor, |_, _| panic!("the secret was sent"))
        .err()
        .expect("refused");
    assert!(
        error.to_string().contains("not the broker that printed the token"),
        "{error}"
    );
    assert!(Identity::load(&card.config.state_dir).is_err(), "nothing was saved");
}

#[test]
fn another_card_of_the_same_authority_cannot_pose_as_the_broker() {
    let card = unenrolled();
    let impostor = Broker::named(&card.authority, "card-of-the-same-authority");
    let token = impostor.token();
    let error = attempt(&card, &token, impostor, |_, _| panic!("the secret was sent"))
        .err()
        .expect("refused");
    assert!(error.to_string().contains("not the broker"), "{error}");
}

#[test]
fn what_the_broker_gives_is_checked_before_it_replaces_anything() {
    let card = Card::new();
    let before = Identity::load(&card.config.state_dir).unwrap();
    let wrong: [(Answer, &str); 4] = [
        (
            |_, _| FromBroker::Refused {
                refusal: Refusal::new(Code::BadToken, "the token was used"),
            },
            "the token was used",
        ),
        (
            |_, _| FromBroker::Enrolled {
                certificate: vec![1, 2, 3],
                ca: vec![],
            },
            "authority",
        ),
        (
            |broker, csr| match broker.enrolled(csr) {
                FromBroker::Enrolled { ca, .. } => FromBroker::Enrolled {
                    certificate: ca.clone(),
                    ca,
                },
                other => other,
            },
            "another key",
        ),
        (|_, _| FromBroker::InventoryAck { seq: 1 }, "something else"),
    ];
    for (answer, told) in wrong {
        let broker = Broker::new(&card.authority);
        let token = broker.token();
        let error = attempt(&card, &token, broker, answer).err().expect("refused");
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(Identity::load(&card.config.state_dir).unwrap().key, before.key);
    }
}

#[test]
fn tokens_for_other_cards_and_damaged_tokens_are_refused_before_connecting() {
    let mut card = Card::new();
    card.config.card = Some(name("other"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let token = Broker::new(&card.authority).token().print();
    let error = runtime.block_on(enrol(&card.config, &token)).err().expect("refused");
    assert!(
        error.to_string().contains("card 'local'") && error.to_string().contains("'other'"),
        "{error}"
    );
    let error = runtime
        .block_on(enrol(&card.config, "obt1.xxxx"))
        .err()
        .expect("refused");
    assert!(error.fix().contains("outboard card enrol"));
}

#[test]
fn a_broker_that_is_away_is_said_to_be_away() {
    let card = unenrolled();
    let token = Broker::new(&card.authority).token();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime
        .block_on(enrol(&card.config, &token.print()))
        .err()
        .expect("nobody listens");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}
