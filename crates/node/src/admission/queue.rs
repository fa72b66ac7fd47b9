//! Whose turn it is: a pure queue of places, fair by tenant. It knows no clock and waits for nobody.
//!
//! A request costs places. Within a tenant the first come is served first; among tenants, whoever holds the fewest places. A part of all
//! places is kept for tenants that hold none, so a tenant that is alone may fill the node and still nobody who comes waits behind it.
//!
//! **Invariants:** places in use never pass the capacity; a tenant that holds none and asks for no more than what is kept waits only
//! for others that held none either; whoever waits is passed by at most [`MOST_PASSES`] requests of tenants that hold places.

use std::collections::{BTreeMap, VecDeque};

/// A request that needs many places lets so many smaller ones pass, then they are saved up for it.
pub const MOST_PASSES: u32 = 32;

/// Places and who waits for them.
#[derive(Debug)]
pub struct Queue<T> {
    capacity: u32,
    kept: u32,
    most_waiting: usize,
    used: u32,
    lanes: BTreeMap<T, Lane>,
}

#[derive(Debug, Default)]
struct Lane {
    used: u32,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    cost: u32,
    passed: u32,
}

impl<T: Ord + Clone> Queue<T> {
    /// `capacity` places in all, a part of it kept for tenants that hold none; `most_waiting` of one tenant may wait.
    pub fn new(capacity: u32, most_waiting: usize) -> Self {
        let capacity = capacity.max(2);
        Self { capacity, kept: (capacity / 8).max(1), most_waiting, used: 0, lanes: BTreeMap::new() }
    }

    /// What a request really takes: never more than a tenant can have.
    pub fn cost(&self, asked: u32) -> u32 {
        asked.clamp(1, self.capacity - self.kept)
    }

    /// Puts a request at the end of its tenant's line; false if that is too long. Tickets ascend. Ask [`Queue::serve`] then.
    pub fn join(&mut self, tenant: &T, ticket: u64, cost: u32) -> bool {
        let cost = self.cost(cost);
        let lane = self.lanes.entry(tenant.clone()).or_default();
        if lane.waiting.len() >= self.most_waiting {
            return false;
        }
        lane.waiting.push_back(Waiting { ticket, cost, passed: 0 });
        true
    }

    /// Takes a request that waits out of the line; false if it does not wait any more.
    pub fn give_up(&mut self, tenant: &T, ticket: u64) -> bool {
        let Some(lane) = self.lanes.get_mut(tenant) else { return false };
        let before = lane.waiting.len();
        lane.waiting.retain(|waiting| waiting.ticket != ticket);
        let gone = lane.waiting.len() < before;
        self.forget_if_empty(tenant);
        gone
    }

    /// Gives back what a request took.
    pub fn leave(&mut self, tenant: &T, cost: u32) {
        let cost = self.cost(cost);
        self.used -= cost;
        if let Some(lane) = self.lanes.get_mut(tenant) {
            lane.used -= cost;
        }
        self.forget_if_empty(tenant);
    }

    /// Hands out what is free; the tickets that are served, in order.
    pub fn serve(&mut self) -> Vec<u64> {
        let mut served = Vec::new();
        while let Some(ticket) = self.serve_one() {
            served.push(ticket);
        }
        served
    }

    /// How many are before it, if it waits: those of its own tenant and those of others that hold no more places.
    pub fn position(&self, tenant: &T, ticket: u64) -> Option<usize> {
        let own = self.lanes.get(tenant)?;
        let before = own.waiting.iter().position(|waiting| waiting.ticket == ticket)?;
        let others = self.lanes.iter().filter(|(other, lane)| *other != tenant && lane.used <= own.used);
        Some(before + others.map(|(_, lane)| lane.waiting.len().min(before + 1)).sum::<usize>() + 1)
    }

    /// Places in use and requests that wait, of each tenant that has any.
    pub fn counts(&self) -> impl Iterator<Item = (&T, u32, usize)> {
        self.lanes.iter().map(|(tenant, lane)| (tenant, lane.used, lane.waiting.len()))
    }

    fn serve_one(&mut self) -> Option<u64> {
        let mut heads: Vec<(u32, u64, &T, u32, u32)> = Vec::new();
        for (tenant, lane) in &self.lanes {
            if let Some(head) = lane.waiting.front() {
                heads.push((lane.used, head.ticket, tenant, head.cost, head.passed));
            }
        }
        heads.sort_unstable_by_key(|head| (head.0, head.1));
        let mut saving = false;
        let mut passed = Vec::new();
        let mut chosen = None;
        for (used, _, tenant, cost, passes) in heads {
            let most = if used == 0 { self.capacity } else { self.capacity - self.kept };
            // While places are saved up for somebody, only a tenant that holds none goes before, out of what is kept for it.
            let may = !saving || used == 0 && cost <= self.kept;
            if may && self.used + cost <= most {
                chosen = Some(tenant.clone());
                break;
            }
            saving |= passes >= MOST_PASSES;
            passed.push(tenant.clone());
        }
        let tenant = chosen?;
        let held = self.lanes.get(&tenant).is_some_and(|lane| lane.used > 0);
        for other in passed.iter().filter(|_| held) {
            if let Some(head) = self.lanes.get_mut(other).and_then(|lane| lane.waiting.front_mut()) {
                head.passed += 1;
            }
        }
        let lane = self.lanes.get_mut(&tenant)?;
        let head = lane.waiting.pop_front()?;
        lane.used += head.cost;
        self.used += head.cost;
        Some(head.ticket)
    }

    fn forget_if_empty(&mut self, tenant: &T) {
        if self.lanes.get(tenant).is_some_and(|lane| lane.used == 0 && lane.waiting.is_empty()) {
            self.lanes.remove(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(queue: &mut Queue<u8>, tenant: u8, ticket: u64, cost: u32) -> bool {
        assert!(queue.join(&tenant, ticket, cost));
        queue.serve().contains(&ticket)
    }

    #[test]
    fn a_tenant_alone_leaves_a_part_for_whoever_comes() {
        let mut queue = Queue::new(16, 100);
        let taken = (0..20).filter(|ticket| take(&mut queue, 1, *ticket, 1)).count();
        assert_eq!(taken, 14);
        assert!(take(&mut queue, 2, 100, 1), "somebody new does not wait");
        assert!(take(&mut queue, 3, 101, 1));
        assert!(!take(&mut queue, 4, 102, 1), "now the node is full");
        assert_eq!(queue.position(&4, 102), Some(1));
        queue.leave(&1, 1);
        assert_eq!(queue.serve(), [102], "who holds none goes before who holds many");
    }

    #[test]
    fn places_go_round_by_tenant_and_not_by_request() {
        let mut queue = Queue::new(8, 1000);
        for ticket in 0..100 {
            take(&mut queue, 1, ticket, 1);
        }
        for ticket in 100..103 {
            take(&mut queue, 2, ticket, 1);
        }
        // The crowd's requests end one by one: the others are served before its next.
        let mut order = Vec::new();
        for _ in 0..4 {
            queue.leave(&1, 1);
            order.extend(queue.serve());
        }
        assert_eq!(order[..2], [101, 102]);
    }

    #[test]
    fn what_needs_much_gets_it_in_the_end() {
        let mut queue = Queue::new(8, 1000);
        for ticket in 0..7 {
            assert!(take(&mut queue, 1 + (ticket % 2) as u8 * 2, ticket, 1));
        }
        assert!(!take(&mut queue, 2, 7, 4), "too much for now");
        // The others' small ones come and go; while it is passed they go on, and then no more.
        let mut passes = 0;
        for ticket in 8..1000 {
            let tenant = 1 + (ticket % 2) as u8 * 2;
            queue.join(&tenant, ticket, 1);
            if queue.lanes[&tenant].used > 0 {
                queue.leave(&tenant, 1);
            }
            let served = queue.serve();
            if served.contains(&7) {
                return assert!(passes <= MOST_PASSES + 1, "{passes} passed");
            }
            passes += served.len() as u32;
        }
        panic!("it waits for ever");
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_the_claims_hold(
            capacity in 2u32..40,
            steps in prop::collection::vec((0u8..5, 1u32..6, any::<bool>(), any::<prop::sample::Index>()), 1..300),
        ) {
            let mut queue = Queue::new(capacity, 50);
            let mut costs = std::collections::HashMap::new();
            let mut running: Vec<(u8, u64)> = Vec::new();
            let mut waiting: Vec<(u8, u64)> = Vec::new();
            for (ticket, (tenant, cost, ends, which)) in steps.into_iter().enumerate() {
                if ends && !running.is_empty() {
                    let (tenant, ticket) = running.swap_remove(which.index(running.len()));
                    queue.leave(&tenant, costs[&ticket]);
                } else {
                    let ticket = ticket as u64;
                    costs.insert(ticket, cost);
                    let idle = running.iter().all(|(other, _)| *other != tenant);
                    let first = waiting.iter().all(|(other, _)| *other != tenant);
                    let newcomers = waiting.iter().any(|(other, _)| running.iter().all(|(t, _)| t != other));
                    let free_for_new = queue.used + queue.cost(cost) <= capacity.max(2);
                    prop_assert!(queue.join(&tenant, ticket, cost));
                    waiting.push((tenant, ticket));
                    let small = queue.cost(cost) <= queue.kept;
                    let served = queue.serve();
                    if idle && first && !newcomers && small && free_for_new {
                        prop_assert!(served.contains(&ticket), "somebody new waits though there is room");
                    }
                    for ticket in served {
                        let at = waiting.iter().position(|(_, waits)| *waits == ticket).expect("it waited");
                        running.push(waiting.remove(at));
                    }
                    continue;
                }
                for ticket in queue.serve() {
                    let at = waiting.iter().position(|(_, waits)| *waits == ticket).expect("it waited");
                    running.push(waiting.remove(at));
                }
                let used: u32 = running.iter().map(|(_, ticket)| queue.cost(costs[ticket])).sum();
                prop_assert_eq!(used, queue.used);
                prop_assert!(used <= capacity.max(2));
            }
            // Everything that waits is served when what runs ends.
            let mut rounds = 0;
            while !waiting.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 2000, "somebody waits for ever");
                let (tenant, ticket) = running.swap_remove(0);
                queue.leave(&tenant, costs[&ticket]);
                for ticket in queue.serve() {
                    let at = waiting.iter().position(|(_, waits)| *waits == ticket).expect("it waited");
                    running.push(waiting.remove(at));
                }
            }
        }
    }
}
