use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};

use proptest::prelude::*;

use super::*;

fn discipline(capacity: u32) -> Discipline {
    Discipline { capacity, ..Discipline::default() }
}

fn at(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

/// Serves everybody, one place at a time, and tells in which order.
fn serve_all(queue: &mut Queue, discipline: &Discipline, now: Instant) -> Vec<Ticket> {
    let mut order = Vec::new();
    loop {
        let called = queue.freed(Some(0), discipline, now);
        let Some(ticket) = called.first().copied() else { return order };
        assert_eq!(called.len(), 1);
        order.push(ticket);
        assert_eq!(queue.served(ticket, 0, discipline, now), []);
    }
}

/// A queue in which the first request waits: it was called on joining and found nothing.
fn queue_of(entries: &[(u64, Entry)], discipline: &Discipline, start: Instant) -> (Queue, Vec<Ticket>) {
    let mut queue = Queue::default();
    let mut tickets = Vec::new();
    for (ms, entry) in entries {
        let (ticket, called) = queue.join(*entry, discipline, at(start, *ms)).unwrap();
        for called in called {
            assert_eq!(queue.missed(called, entry.lane, discipline, at(start, *ms)), []);
        }
        tickets.push(ticket);
    }
    (queue, tickets)
}

#[test]
fn who_joins_an_empty_queue_looks_at_once_and_others_wait_for_a_place() {
    let (mut queue, start) = (Queue::default(), Instant::now());
    let rules = discipline(3);
    let (first, called) = queue.join(Entry::default(), &rules, start).unwrap();
    assert_eq!(called, [first]);
    let (second, called) = queue.join(Entry::default(), &rules, start).unwrap();
    assert_eq!(called, []);
    // The first finds a place, so there may be one more; the second does not, and nobody else is called.
    assert_eq!(queue.served(first, 0, &rules, start), [second]);
    assert_eq!(queue.missed(second, Lane::Any, &rules, start), []);
    assert_eq!(queue.freed(Some(7), &rules, start), [second]);
    assert_eq!(queue.served(second, 0, &rules, start), []);
    assert!(queue.is_empty());
}

#[test]
fn lower_classes_are_served_first_then_who_came_first_counting_offsets() {
    let start = Instant::now();
    let rules = discipline(10);
    let entry = |class, offset_ms| Entry { class, offset_ms, ..Entry::default() };
    let entries = [(0, entry(0, 0)), (1, entry(-5, 0)), (2, entry(0, -10)), (3, entry(0, 0)), (4, entry(-5, 0))];
    let (mut queue, tickets) = queue_of(&entries, &rules, start);
    let order = serve_all(&mut queue, &rules, at(start, 5));
    assert_eq!(order, [1, 4, 2, 0, 3].map(|number: usize| tickets[number]));
}

#[test]
fn callers_are_served_in_turn() {
    let start = Instant::now();
    let rules = Discipline { order: Order::Fair, ..discipline(20) };
    let from = |caller| Entry { caller: Some(caller), ..Entry::default() };
    // Ten of one caller, then two of another, and one that does not say.
    let mut entries: Vec<(u64, Entry)> = (0..10).map(|ms| (ms, from(1))).collect();
    entries.extend([(10, from(2)), (11, from(2)), (12, Entry::default())]);
    let (mut queue, tickets) = queue_of(&entries, &rules, start);
    let order = serve_all(&mut queue, &rules, at(start, 20));
    let position = |number: usize| order.iter().position(|ticket| *ticket == tickets[number]).unwrap();
    assert!(position(10) <= 2 && position(11) <= 4 && position(12) <= 2, "{order:?}");
    assert_eq!(order.len(), 13);
    // Whoever was served much before starts level with the others.
    let (mut queue, tickets) = queue_of(&[(30, from(1)), (31, from(2)), (32, from(1))], &rules, start);
    assert_eq!(serve_all(&mut queue, &rules, at(start, 33)), tickets);
}

#[test]
fn the_newest_is_served_first_once_the_queue_has_been_busy_for_long() {
    let start = Instant::now();
    let rules = Discipline { newest_first_after: Some(Duration::from_millis(100)), ..discipline(10) };
    let class = |class| Entry { class, ..Entry::default() };
    let entries = [(0, class(0)), (10, class(0)), (20, class(1)), (30, class(0))];
    let (mut queue, tickets) = queue_of(&entries, &rules, start);
    assert_eq!(queue.freed(Some(0), &rules, at(start, 50)), [tickets[0]]);
    assert_eq!(queue.served(tickets[0], 0, &rules, at(start, 50)), []);
    let late = serve_all(&mut queue, &rules, at(start, 150));
    assert_eq!(late, [3, 1, 2].map(|number: usize| tickets[number]));
}

#[test]
fn a_place_goes_to_those_whom_it_helps() {
    let start = Instant::now();
    let rules = Discipline { endpoint_capacity: Some(1), ..discipline(3) };
    let lane = |lane| Entry { lane, ..Entry::default() };
    let (a, b, any) = (lane(Lane::Endpoint(1)), lane(Lane::Endpoint(2)), lane(Lane::Any));
    let (mut queue, tickets) = queue_of(&[(0, a), (1, b), (2, any)], &rules, start);
    assert_eq!(queue.join(a, &rules, at(start, 3)), Err(Full::Queue));
    assert_eq!(queue.join(a, &Discipline { capacity: 9, ..rules }, at(start, 3)), Err(Full::Endpoint));
    assert_eq!((queue.len_at(1), queue.len_at(2), queue.len()), (1, 1, 3));
    assert_eq!(queue.freed(Some(2), &rules, at(start, 4)), [tickets[1]]);
    assert_eq!(queue.freed(Some(2), &rules, at(start, 4)), [tickets[2]]);
    // Only who waits for another endpoint is left: the place is kept for who may come.
    assert_eq!(queue.freed(Some(2), &rules, at(start, 4)), []);
    assert_eq!(queue.freed(Some(1), &rules, at(start, 4)), [tickets[0]]);
}

#[test]
fn who_cannot_use_a_place_passes_it_on() {
    let start = Instant::now();
    let rules = discipline(9);
    let part = |part| Entry { lane: Lane::Part(part), ..Entry::default() };
    let (mut queue, tickets) = queue_of(&[(0, part(1)), (1, part(1)), (2, part(2))], &rules, start);
    assert_eq!(queue.freed(Some(5), &rules, at(start, 3)), [tickets[0]]);
    // The second is like the first, the third is not.
    assert_eq!(queue.missed(tickets[0], Lane::Part(1), &rules, at(start, 3)), [tickets[2]]);
    assert_eq!(queue.missed(tickets[2], Lane::Part(2), &rules, at(start, 3)), []);
    assert_eq!(queue.freed(Some(5), &rules, at(start, 4)), [tickets[0]]);
    // Who leaves when it is its turn passes it on, too.
    assert_eq!(queue.leave(tickets[0], &rules, at(start, 4)), [tickets[1]]);
}

#[test]
fn a_place_freed_while_the_called_one_looks_is_not_lost() {
    let start = Instant::now();
    let rules = discipline(9);
    let (mut queue, tickets) = queue_of(&[(0, Entry::default())], &rules, start);
    assert_eq!(queue.freed(Some(1), &rules, start), [tickets[0]]);
    assert_eq!(queue.freed(Some(1), &rules, start), []);
    assert_eq!(queue.missed(tickets[0], Lane::Any, &rules, start), [tickets[0]]);
}

/// Endpoints with places, and requests that take them as a worker would.
struct World {
    queue: Queue,
    free: Vec<u32>,
    lanes: HashMap<Ticket, Lane>,
    called: VecDeque<Ticket>,
    held: Vec<usize>,
    now: Instant,
    rules: Discipline,
}

impl World {
    fn place_for(&self, lane: Lane) -> Option<usize> {
        match lane {
            Lane::Any => self.free.iter().position(|free| *free > 0),
            // A part of the cluster is its even or its odd endpoints.
            Lane::Part(part) => (0..self.free.len()).find(|at| *at as u64 % 2 == part % 2 && self.free[*at] > 0),
            Lane::Endpoint(at) => Some(at as usize).filter(|at| self.free[*at] > 0),
        }
    }

    fn call(&mut self, called: Vec<Ticket>) {
        self.called.extend(called);
    }

    /// As a worker does: straight to a place if nobody waits, else into the queue.
    fn arrive(&mut self, entry: Entry) {
        if self.queue.is_empty()
            && let Some(at) = self.place_for(entry.lane)
        {
            self.free[at] -= 1;
            self.held.push(at);
            return;
        }
        if let Ok((ticket, called)) = self.queue.join(entry, &self.rules, self.now) {
            self.lanes.insert(ticket, entry.lane);
            self.call(called);
        }
    }

    /// Lets the called one look.
    fn step(&mut self) -> bool {
        let Some(ticket) = self.called.pop_front() else { return false };
        let called = match self.place_for(self.lanes[&ticket]) {
            Some(at) => {
                self.free[at] -= 1;
                self.held.push(at);
                self.lanes.remove(&ticket);
                self.queue.served(ticket, at as u64, &self.rules, self.now)
            }
            None => self.queue.missed(ticket, self.lanes[&ticket], &self.rules, self.now),
        };
        self.call(called);
        true
    }

    fn free_one(&mut self, number: usize) {
        if self.held.is_empty() {
            return;
        }
        let at = self.held.swap_remove(number % self.held.len());
        self.free[at] += 1;
        let called = self.queue.freed(Some(at as u64), &self.rules, self.now);
        self.call(called);
    }

    fn leave(&mut self, number: usize) {
        let mut tickets: Vec<Ticket> = self.lanes.keys().copied().collect();
        tickets.sort();
        let Some(ticket) = tickets.get(number % tickets.len().max(1)).copied() else { return };
        self.lanes.remove(&ticket);
        self.called.retain(|called| *called != ticket);
        let called = self.queue.leave(ticket, &self.rules, self.now);
        self.call(called);
    }
}

#[derive(Clone, Debug)]
enum Event {
    Arrive(Entry),
    Step,
    Free(usize),
    Leave(usize),
    Raise(usize),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let lane = prop_oneof![
        3 => Just(Lane::Any),
        1 => (0..2_u64).prop_map(Lane::Part),
        2 => (0..3_u64).prop_map(Lane::Endpoint),
    ];
    let entry = (lane, -2..3_i32, -5..5_i64, proptest::option::of(0..3_u64))
        .prop_map(|(lane, class, offset_ms, caller)| Entry { lane, class, offset_ms, caller });
    let event = prop_oneof![
        4 => entry.prop_map(Event::Arrive),
        3 => Just(Event::Step),
        3 => any::<usize>().prop_map(Event::Free),
        1 => any::<usize>().prop_map(Event::Leave),
        1 => (0..3_usize).prop_map(Event::Raise),
        1 => (0..50_u64).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Once all who were called have looked, no free place helps anybody who waits; and nothing leaks.
    #[test]
    fn no_place_stays_free_while_somebody_waits_for_it(events in events(), fair in any::<bool>(), lifo in any::<bool>()) {
        let rules = Discipline {
            order: if fair { Order::Fair } else { Order::Arrival },
            newest_first_after: lifo.then_some(Duration::from_millis(20)),
            capacity: 30,
            endpoint_capacity: Some(6),
        };
        let mut world = World {
            queue: Queue::default(),
            free: vec![1, 2, 0],
            lanes: HashMap::new(),
            called: VecDeque::new(),
            held: Vec::new(),
            now: Instant::now(),
            rules,
        };
        for event in events {
            match event {
                Event::Arrive(entry) => world.arrive(entry),
                Event::Step => { world.step(); }
                Event::Free(number) => world.free_one(number),
                Event::Leave(number) => world.leave(number),
                Event::Raise(at) => {
                    world.free[at] += 1;
                    let called = world.queue.kick(&rules, world.now);
                    world.call(called);
                }
                Event::Wait(ms) => world.now += Duration::from_millis(ms),
            }
            prop_assert!(world.queue.len() <= 30);
            let distinct: HashSet<_> = world.called.iter().collect();
            prop_assert_eq!(distinct.len(), world.called.len());
        }
        while world.step() {}
        prop_assert_eq!(world.queue.len(), world.lanes.len());
        for lane in world.lanes.values() {
            prop_assert_eq!(world.place_for(*lane), None, "{:?} waits, free: {:?}", lane, world.free);
        }
        // Everybody is served in the end.
        while !world.lanes.is_empty() {
            let before = world.lanes.len();
            while world.step() {}
            for at in 0..3 {
                world.free[at] += 1;
                let called = world.queue.freed(Some(at as u64), &rules, world.now);
                world.call(called);
                while world.step() {}
            }
            prop_assert!(world.lanes.len() < before);
        }
        prop_assert!(world.queue.is_empty());
        prop_assert_eq!(world.queue.lines.len(), 0);
    }
}

/// The queue with the counting beside it, as workers use it: a place is given back before it is looked whether somebody
/// waits, and who waits looks once more after it has said so.
#[test]
fn eight_threads_stay_within_the_limit_and_nobody_waits_for_ever() {
    const LIMIT: u32 = 3;
    let rules = discipline(100);
    let queue = Mutex::new((Queue::default(), HashSet::<Ticket>::new()));
    let (changed, used, waiting, highest) = (Condvar::new(), AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let take = || {
        let within = |used: u32| (used < LIMIT).then_some(used + 1);
        used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, within).is_ok()
    };
    let enter = || {
        if waiting.load(Ordering::SeqCst) == 0 && take() {
            return;
        }
        let now = Instant::now();
        let mut guard = queue.lock().unwrap();
        let (ticket, called) = guard.0.join(Entry::default(), &rules, now).unwrap();
        waiting.fetch_add(1, Ordering::SeqCst);
        guard.1.extend(called);
        loop {
            while !guard.1.remove(&ticket) {
                guard = changed.wait(guard).unwrap();
            }
            drop(guard);
            let found = take();
            guard = queue.lock().unwrap();
            let called = if found {
                guard.0.served(ticket, 0, &rules, now)
            } else {
                guard.0.missed(ticket, Lane::Any, &rules, now)
            };
            guard.1.extend(called);
            changed.notify_all();
            if found {
                waiting.fetch_sub(1, Ordering::SeqCst);
                return;
            }
        }
    };
    let leave = || {
        used.fetch_sub(1, Ordering::SeqCst);
        if waiting.load(Ordering::SeqCst) > 0 {
            let mut guard = queue.lock().unwrap();
            let called = guard.0.freed(Some(0), &rules, Instant::now());
            guard.1.extend(called);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    enter();
                    highest.fetch_max(used.load(Ordering::SeqCst), Ordering::SeqCst);
                    std::hint::spin_loop();
                    leave();
                }
            });
        }
    });
    assert_eq!((used.load(Ordering::SeqCst), waiting.load(Ordering::SeqCst)), (0, 0));
    assert!((1..=LIMIT).contains(&highest.load(Ordering::SeqCst)));
    assert!(queue.lock().unwrap().0.is_empty());
}
