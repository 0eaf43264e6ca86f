//! What every part of the slot must hold, and what the engine makes of it. The list comes from the registry.

use ramekin_core::{Array, Category, Meter, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::{Blueprint, Loading};
use ramekin_engine::parts;
use ramekin_engine::shared::Shared;
use ramekin_engine::step::LabelledBatch;
use ramekin_engine::team::Team;
use ramekin_recipe::Part;
use ramekin_registry::{Slot, complete, names};
use ramekin_slots::{Comm, Peer, RankFailed};
use ramekin_tests::{compare, lab, toy};
use serde_json::{Value as Json, json};

/// Settings of each part for this many ranks.
fn settings(kind: &str, ranks: usize) -> Json {
    match kind {
        "local" => json!({ "ranks": ranks }),
        other => panic!("`comm/{other}` is not in this table"),
    }
}

fn comms(ranks: usize) -> Vec<Box<dyn Comm>> {
    ramekin_catalog::link();
    let make = |kind: &str| parts::comm(&lab::part(kind, settings(kind, ranks))).expect("a comm");
    let all: Vec<Box<dyn Comm>> = names(Slot::Comm).into_iter().map(make).collect();
    assert!(!all.is_empty());
    all
}

/// Runs every rank in a thread with a meter of its own; what each returned, by rank.
fn side_by_side<T: Send>(comm: &dyn Comm, work: impl Fn(Box<dyn Peer>) -> T + Sync) -> Vec<T> {
    let ends = comm.join().expect("the ranks find each other");
    assert_eq!(ends.len(), comm.ranks());
    std::thread::scope(|scope| {
        let work = &work;
        let start = |end: Box<dyn Peer + Send>| {
            scope.spawn(move || {
                let _scope = meter::scope(Meter::new());
                work(end)
            })
        };
        let threads: Vec<_> = ends.into_iter().map(start).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    })
}

fn array(x: &[f32]) -> Array {
    Array::from_vec(x.to_vec(), &[x.len()], Category::Workspace).expect("an array")
}

/// Numbers whose sum depends on the order in which they are added.
fn own(rank: usize) -> Vec<f32> {
    (0..1000).map(|i| ((i * 37 + rank * 911) % 1009) as f32 * 10f32.powi(rank as i32 * 3 - 4)).collect()
}

/// `((onto + x₀) + x₁) + x₂`, the same bits on every rank, whoever comes first.
#[test]
fn sums_go_in_the_order_of_the_ranks() {
    for comm in comms(3) {
        let start = own(7);
        let mut expected = start.clone();
        for rank in 0..3 {
            expected.iter_mut().zip(own(rank)).for_each(|(s, x)| *s += x);
        }
        let sums = side_by_side(&*comm, |peer| {
            let wait = std::time::Duration::from_millis(3 * (2 - peer.rank() as u64));
            std::thread::sleep(wait);
            let given = Some(("w", array(&own(peer.rank()))));
            let (name, sum) =
                peer.sum(given, &mut |_| Some(array(&start))).expect("a sum").expect("something");
            assert_eq!(name, "w");
            sum.to_f32().expect("numbers")
        });
        for sum in sums {
            compare::same_bits("the sum", &sum, &expected);
        }
    }
}

/// A rank that has nothing to give gets the sum; where nobody has, nobody gets one.
#[test]
fn a_rank_may_have_nothing() {
    for comm in comms(2) {
        let sums = side_by_side(&*comm, |peer| {
            let given = (peer.rank() == 1).then(|| ("w", array(&[2.0])));
            let sum = peer.sum(given, &mut |_| None).expect("a sum").expect("rank 1's");
            assert!(peer.sum(None, &mut |_| None).expect("an end").is_none());
            sum.1.to_f32().expect("numbers")
        });
        assert_eq!(sums, [[2.0], [2.0]]);
        let errors = side_by_side(&*comm, |peer| {
            let name = ["a", "b"][peer.rank()];
            peer.sum(Some((name, array(&[1.0]))), &mut |_| None).expect_err("two names").to_string()
        });
        assert!(errors.iter().all(|e| e.contains("`a`") && e.contains("`b`")), "{errors:?}");
    }
}

#[test]
fn bytes_go_round() {
    for comm in comms(3) {
        let found = side_by_side(&*comm, |peer| {
            let own = vec![peer.rank() as u8; peer.rank() + 1];
            let all = peer.gather(own.clone()).expect("bytes");
            peer.barrier().expect("all come");
            (all, peer.broadcast(own).expect("rank 0's"))
        });
        for (all, first) in found {
            assert_eq!(all, [vec![0], vec![1, 1], vec![2, 2, 2]]);
            assert_eq!(first, [0]);
        }
    }
}

/// One that fails, or simply goes, takes the others along with its own words.
#[test]
fn nobody_waits_for_ever() {
    for comm in comms(3) {
        let errors = side_by_side(&*comm, |peer| {
            if peer.rank() == 2 {
                peer.fail("the rows are gone");
                return String::new();
            }
            let error = peer.gather(Vec::new()).expect_err("rank 2 never comes");
            assert!(error.is::<RankFailed>());
            error.to_string()
        });
        assert_eq!(errors[0], "rank 2: the rows are gone");
        assert_eq!(errors[1], errors[0]);
        let left = side_by_side(&*comm, |peer| peer.rank() == 1 || peer.barrier().is_err());
        assert_eq!(left, [true; 3]);
    }
}

/// A plan's end costs and holds what a real one does.
#[test]
fn rehearsals_count_alike() {
    for comm in comms(2) {
        let work = |peer: &dyn Peer, given: Array| {
            let meter = meter::current();
            let sum = peer.sum(Some(("w", given)), &mut |_| None).expect("a sum");
            peer.gather(vec![1, 2, 3]).expect("bytes");
            drop(sum);
            assert_eq!(meter.live().total(), 0);
            (meter.traffic(), meter.peak())
        };
        let real = side_by_side(&*comm, |peer| work(&*peer, array(&own(0))));
        let _scope = meter::scope(Meter::new());
        let shape =
            Array::shape_only(&[1000], ramekin_core::DType::F32, Category::Workspace).expect("a shape");
        let plan = work(&*comm.rehearse(), shape);
        assert_eq!(real, [plan, plan]);
        assert_eq!(plan.0.ranks, ramekin_core::Link { sent: 4003, fetched: 4003 });
        assert_eq!(plan.1, 8000, "its own and the sum");
    }
}

#[test]
fn settings_are_closed() {
    ramekin_catalog::link();
    for kind in names(Slot::Comm) {
        complete(Slot::Comm, kind, json!({})).expect("the default");
        assert!(complete(Slot::Comm, kind, json!({ "nonsense": 1 })).is_err(), "{kind}");
        for ranks in [0, 1000] {
            let error = parts::comm(&lab::part(kind, settings(kind, ranks))).err().expect("no such number");
            assert!(
                format!("{error:#}").contains(&format!("is {ranks}; it must be from 1 to 64")),
                "{error:#}"
            );
        }
    }
}

fn plan() -> Blueprint {
    let lora = json!({ "r": 4, "target_modules": "all-linear" });
    Blueprint {
        adapters: vec![lab::new_adapter("lora", lora)],
        ..lab::fresh_model(toy::llama(61, 64, 2, 4, 96))
    }
}

type Trained = Vec<(String, Vec<f32>)>;

/// Two updates; losses, norms and what was trained.
fn steps(assembly: &Assembly, team: Team, batches: &[LabelledBatch]) -> (Vec<(f64, f64)>, Trained) {
    let mut trainer = lab::trainer(1e-2);
    trainer.team = team;
    let step = |s| {
        let report = trainer.step(assembly, batches, s).unwrap_or_else(|e| panic!("{e:#}"));
        (report.loss, report.grad_norm)
    };
    ((0..2).map(step).collect(), lab::trained(assembly))
}

/// A micro-batch without a target reaches no parameter; its rank takes what the other brings.
#[test]
fn an_empty_micro_batch_holds_nobody_up() {
    let batch = |rank: usize| {
        let mut batch = lab::batch(&lab::sequences(&[9, 14], 61, 3 + rank as u64));
        if rank == 1 {
            batch.labels.fill(-100);
        }
        batch
    };
    let alone = steps(&lab::assemble(&plan()), Team::alone(), &[batch(0), batch(1)]);
    for comm in comms(2) {
        let both = side_by_side(&*comm, |peer| {
            let rank = peer.rank();
            steps(&lab::assemble(&plan()), Team::with(peer), &[batch(rank)])
        });
        for found in both {
            assert_eq!(found.0, alone.0);
            for ((name, a), (_, b)) in found.1.iter().zip(&alone.1) {
                compare::same_bits(name, a, b);
            }
        }
    }
}

/// A rank that fails in the middle of a step takes the others out of it, with its number and its words.
#[test]
fn a_fault_names_its_rank() {
    for comm in comms(2) {
        let errors = side_by_side(&*comm, |peer| {
            let (rank, mut assembly) = (peer.rank(), lab::assemble(&plan()));
            let mut trainer = lab::trainer(1e-2);
            let words = json!({ "label_words": [3, 4] });
            trainer.objective = parts::objective(&lab::part("label-words", words)).expect("words");
            trainer.join(&mut assembly, &plan()).expect("two words");
            trainer.team = Team::with(peer);
            let mut batch = lab::batch(&[vec![3, 4, 4, 3]]);
            if rank == 1 {
                batch.labels[1] = 50;
            }
            let error = trainer.step(&assembly, &[batch], 0).expect_err("rank 1 cannot go on");
            trainer.team.fail(&error);
            (error.is::<RankFailed>(), error.to_string())
        });
        assert_eq!([errors[0].0, errors[1].0], [true, false]);
        assert!(errors[1].1.contains("does not name token 50"), "{errors:?}");
        assert_eq!(errors[0].1, format!("rank 1: {}", errors[1].1));
    }
}

/// Ranks that have come apart are noticed, and the tensor is named.
#[test]
fn ranks_that_differ_are_noticed() {
    for comm in comms(2) {
        let errors = side_by_side(&*comm, |peer| {
            let (rank, assembly) = (peer.rank(), lab::assemble(&plan()));
            let team = Team::with(peer);
            team.agree(&assembly, 0).expect("fresh ones are alike");
            if rank == 1 {
                let last = assembly.trainable().pop().expect("something trains").value();
                last.update(|x: &mut [f32]| x[0] = f32::from_bits(x[0].to_bits() + 1)).expect("numbers");
            }
            team.agree(&assembly, 3).expect_err("a bit differs").to_string()
        });
        let name = lab::assemble(&plan()).trainable().pop().expect("one").name().to_owned();
        assert_eq!(errors[0], format!("`{name}` is not the same on rank 1 as on rank 0 after step 3"));
        assert_eq!(errors[0], errors[1]);
    }
}

/// Frozen weights are loaded once: dense ones and packed ones.
#[test]
fn frozen_weights_are_shared() {
    for packed in [false, true] {
        let quantizer = packed.then(|| lab::part("nf4", json!({ "block_size": 32 })));
        let plan = Blueprint { quantizer, ..plan() };
        let (one, two) = (Meter::new(), Meter::new());
        let first = {
            let _scope = meter::scope(one.clone());
            lab::assemble(&plan)
        };
        let shared = Shared::of(&first, &plan);
        let _scope = meter::scope(two.clone());
        let second = plan.load(Loading::Beside(&shared)).expect("a second rank");
        assert!(shared.bytes() > 0 && shared.bytes() <= one.live().weights);
        assert_eq!(two.live().weights, one.live().weights - shared.bytes(), "packed: {packed}");
        assert_eq!(two.live().trainable, one.live().trainable);
        let flat = lab::batch(&lab::sequences(&[12], 61, 4)).flat;
        compare::same_bits("logits", &lab::logits(&first, &flat, true), &lab::logits(&second, &flat, true));
        // What a selection may yet train belongs to each rank alone.
        let chosen = Blueprint { selection: Some(Part::of("full")), adapters: Vec::new(), ..plan.clone() };
        let plain = Blueprint { quantizer: None, ..chosen };
        assert_eq!(Shared::of(&lab::assemble(&plain), &plain).bytes(), 0);
    }
}
