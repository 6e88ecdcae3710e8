//! A min-heap whose entries are found by their keys. Pure: the caller provides the current time.

use std::cmp::Ordering;
use std::hash::Hash;

use priority_queue::PriorityQueue;

/// Keys that wait, each for a time and with a value. The earliest time comes first.
#[derive(Debug)]
pub(crate) struct Queue<K: Hash + Eq, T: Ord, V>(PriorityQueue<K, Priority<T, V>>);

/// An entry of the heap. The earliest entry compares as the greatest, as the heap requires.
#[derive(Debug)]
struct Priority<T, V> {
    at: T,
    value: V,
}

impl<T: Ord, V> Ord for Priority<T, V> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

impl<T: Ord, V> PartialOrd for Priority<T, V> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord, V> PartialEq for Priority<T, V> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Ord, V> Eq for Priority<T, V> {}

impl<K: Hash + Eq, T: Ord, V> Default for Queue<K, T, V> {
    fn default() -> Self {
        Self(PriorityQueue::new())
    }
}

impl<K: Hash + Eq, T: Ord + Copy, V> Queue<K, T, V> {
    /// Adds `key`, which waits until `at`. Replaces its earlier entry, if there is one, and returns its value.
    pub(crate) fn insert(&mut self, key: K, at: T, value: V) -> Option<V> {
        self.0.push(key, Priority { at, value }).map(|before| before.value)
    }

    /// Creates a queue that holds as many entries without growing.
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(PriorityQueue::with_capacity(count))
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<(T, V)> {
        self.0.remove(key).map(|(_, entry)| (entry.at, entry.value))
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get_priority(key).map(|entry| &entry.value)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.0.contains(key)
    }

    /// Removes and returns the earliest entry, if it is due.
    pub(crate) fn pop_due(&mut self, now: T) -> Option<(K, V)> {
        self.0.pop_if(|_, entry| entry.at <= now).map(|(key, entry)| (key, entry.value))
    }

    /// Returns the earliest key, and when it is due.
    pub(crate) fn peek(&self) -> Option<(&K, T)> {
        self.0.peek().map(|(key, entry)| (key, entry.at))
    }

    /// Returns when the earliest key is due.
    pub(crate) fn next(&self) -> Option<T> {
        self.peek().map(|(_, at)| at)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns when a key is due, and its value.
    pub(crate) fn entry(&self, key: &K) -> Option<(T, &V)> {
        self.0.get_priority(key).map(|entry| (entry.at, &entry.value))
    }

    /// Returns the waiting keys with their values, in no order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&K, T, &V)> {
        self.0.iter().map(|(key, entry)| (key, entry.at, &entry.value))
    }

    /// Returns the waiting keys, in no order.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, T)> {
        self.0.iter().map(|(key, entry)| (key, entry.at))
    }

    /// Keeps the entries for which `keep` returns true.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        self.0.retain(|key, entry| keep(key, &entry.value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    proptest! {
        /// proptest prints the seed of a failure.
        #[test]
        fn it_behaves_as_a_sorted_map(operations in prop::collection::vec((0_u8..40, 0_u8..50, 0_u8..6), 1..300)) {
            let mut queue = Queue::default();
            let mut model: BTreeMap<u8, (u8, u8)> = BTreeMap::new();
            for (key, at, operation) in operations {
                match operation {
                    0..=2 => {
                        queue.insert(key, at, operation);
                        model.insert(key, (at, operation));
                    }
                    3 => prop_assert_eq!(queue.remove(&key), model.remove(&key)),
                    4 => {
                        while let Some((key, value)) = queue.pop_due(at) {
                            let (due, expected) = model.remove(&key).unwrap();
                            prop_assert!(due <= at && model.values().all(|other| other.0 >= due));
                            prop_assert_eq!(value, expected);
                        }
                        prop_assert!(model.values().all(|(due, _)| *due > at));
                    }
                    _ => {
                        queue.retain(|key, _| key % 3 != at % 3);
                        model.retain(|key, _| key % 3 != at % 3);
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.next(), model.values().map(|(at, _)| *at).min());
                prop_assert_eq!(queue.get(&key), model.get(&key).map(|(_, value)| value));
            }
        }
    }
}
