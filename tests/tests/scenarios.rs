//! A few of the scenarios; `cargo run --release -p firstfall-tests --bin scenarios` runs them all, and hours of ordinary life.

use harness::scenario::fault::What;
use harness::scenario::world::Topology;
use harness::scenario::{Scenario, life, run};

#[test]
fn each_fault_is_one_incident_with_its_origin_first_and_its_hops_away_from_it() {
    let mut named = 0;
    for (place, what) in What::ALL.into_iter().enumerate() {
        // Each in the next topology that has a place for it.
        let mut topologies = (0..Topology::ALL.len()).map(|n| Topology::ALL[(place + n) % Topology::ALL.len()]);
        let outcome = topologies
            .find_map(|topology| run(&Scenario { topology, what, load: 4.0, seed: 3 + place as u64 }))
            .expect("one of the topologies has a place for it");
        let told: Vec<&str> = outcome.incidents.iter().map(|i| i.title.as_str()).collect();
        assert_eq!(outcome.before, 0, "{what:?}: {told:?}");
        assert_eq!(outcome.incidents.len(), 1, "{what:?} at {}: {told:?}", outcome.truth.origin);
        assert!(outcome.rank().is_some_and(|rank| rank <= 3), "{what:?} at {}: {told:?}", outcome.truth.origin);
        named += usize::from(outcome.rank() == Some(1));
        let (hops, right) = outcome.hops();
        assert_eq!(hops, right, "{what:?}: {:?}", outcome.incidents[0].diagnosis.hops);
    }
    assert!(named >= What::ALL.len() - 1, "{named} of {} are named first", What::ALL.len());
}

#[test]
fn half_an_hour_of_ordinary_life_with_forty_services_raises_nothing() {
    let told = life::quiet(0.5, 2.0, 3);
    assert!(told.is_empty(), "{told:#?}");
}
