use outboard_api::topology::parse;

use super::*;

pub const TOPOLOGY: &str = r#"
[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]
[[volume]]
name = "disk1"
size = "4GiB"
backend = { file = "disk1.raw" }
[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
card = "here"
"#;

fn args(file: &str) -> UpArgs {
    UpArgs {
        file: file.into(),
        run_dir: Some("/run/ob".into()),
        volume_dir: None,
        workers: None,
        cores: vec![],
        tracked_connections: None,
    }
}

fn topology() -> Topology {
    parse(TOPOLOGY).expect("good")
}

#[test]
fn the_card_of_the_file_serves_everything() {
    let plan = Plan::new(topology(), &args("/etc/ob/t.toml")).expect("planned");
    assert_eq!(plan.card.as_str(), "here");
    assert_eq!(plan.topology.volumes[0].card, Some(plan.card.clone()));
    let none = parse(&TOPOLOGY.replace("card = \"here\"", "")).expect("good");
    assert_eq!(
        Plan::new(none, &args("/t.toml")).expect("planned").card.as_str(),
        CARD_DEFAULT
    );
}

#[test]
fn each_worker_has_a_core_or_none_has() {
    let planned = |workers, cores: &[usize]| {
        let args = UpArgs {
            workers,
            cores: cores.to_vec(),
            ..args("/t.toml")
        };
        Plan::new(topology(), &args).map(|plan| (plan.workers, plan.cores))
    };
    assert_eq!(planned(None, &[]).expect("planned"), (1, vec![]));
    assert_eq!(planned(Some(3), &[]).expect("planned"), (3, vec![]));
    assert_eq!(planned(None, &[2, 3]).expect("planned"), (2, vec![2, 3]));
    for (workers, cores) in [(Some(0), &[][..]), (Some(2), &[1]), (Some(1), &[2, 3])] {
        let error = planned(workers, cores).expect_err("refused");
        assert_eq!(error.code(), "usage");
    }
}

#[test]
fn more_than_one_card_is_refused() {
    let two = parse(&TOPOLOGY.replace("size =", "card = \"there\"\nsize =")).expect("good");
    let error = Plan::new(two, &args("/t.toml")).expect_err("refused");
    assert_eq!(error.code(), "several_cards");
    assert!(error.to_string().contains("here and there"), "{error}");
}

#[test]
fn volumes_are_beside_the_file_unless_told() {
    let file = |args: &UpArgs| {
        let plan = Plan::new(topology(), args).expect("planned");
        plan.file_of(&plan.topology.volumes[0]).expect("a file")
    };
    assert_eq!(file(&args("/etc/ob/t.toml")), Path::new("/etc/ob/disk1.raw"));
    assert_eq!(
        file(&UpArgs {
            volume_dir: Some("/srv".into()),
            ..args("/t.toml")
        }),
        Path::new("/srv/disk1.raw")
    );
    let here = std::env::current_dir().expect("a directory");
    assert_eq!(file(&args("t.toml")), here.join("disk1.raw"));
    assert_eq!(file(&args("-")), here.join("disk1.raw"));
}

#[test]
fn a_run_dir_that_cannot_be_pasted_is_refused() {
    for dir in ["/run/a,b", "/run/a b", "/run/'a'", "/run/ü", "/run/<a>", "/run/a\nb"] {
        let error = Plan::new(
            topology(),
            &UpArgs {
                run_dir: Some(dir.into()),
                ..args("/t.toml")
            },
        )
        .expect_err("refused");
        assert_eq!(error.code(), "run_dir_characters", "{dir}");
    }
}
