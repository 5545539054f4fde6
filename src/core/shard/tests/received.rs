//! Checks the messages that the simulated clients receive against the model.

use std::collections::BTreeMap;

use super::World;
use super::peers::{Told, Write};

impl World {
    pub(super) fn read(&mut self, place: usize) {
        while let Some(told) = self.rig.peers[place].client.next_told() {
            let member = &mut self.members[place];
            assert_eq!(member.close_code, None, "data after a close frame");
            match told {
                Told::Status(status) => assert_eq!(Some(status), member.status_expected),
                Told::Init(data) => self.read_init(place, &data),
                Told::Op(write) => self.read_op(place, &write),
                Told::Error(code, _) => {
                    assert_eq!(code, 500);
                    assert!(member.lost_an_op, "received 500 without losing an op");
                    member.has_error = true;
                }
                Told::Close(code) => {
                    assert_eq!(Some(code), member.close_expected);
                    if code == 1011 {
                        assert_eq!(
                            member.has_error, member.lost_an_op,
                            "a client that lost an op received no error"
                        );
                    }
                    member.close_code = Some(code);
                }
                Told::Control => {}
                Told::Version2(text) => unreachable!("{text}: all clients speak version 1"),
            }
        }
    }

    /// Checks that an init message is the state after some number of wins, and expects the ops that
    /// won after that.
    fn read_init(&mut self, place: usize, data: &BTreeMap<String, String>) {
        let member = &mut self.members[place];
        assert!(!member.has_init, "a second init message arrived");
        member.has_init = true;
        let model = &self.models[member.workspace];
        let is_data = |count: &usize| {
            let state = model.state(*count);
            let mut fields = state.iter().zip(data);
            state.len() == data.len()
                && fields
                    .all(|(held, field)| *held.0 == field.0.as_str() && held.1.value == *field.1)
        };
        let until = member.joined_at.min(model.wins.len());
        let at = (0..=until).rev().find(is_data);
        let at = at.expect("init is a state from before the join");
        for win in model.wins[at..until].iter().rev() {
            member.expected.push_front(win.0.clone());
        }
        for (key, value) in data {
            member.held.insert(key.clone(), (value.clone(), 0));
        }
    }

    fn read_op(&mut self, place: usize, write: &Write) {
        let member = &mut self.members[place];
        assert!(member.has_init, "a message arrived before init");
        member.hold(write);
        if !member.was_behind {
            assert_eq!(member.expected.pop_front().as_ref(), Some(write));
            return;
        }
        let wins = &self.models[member.workspace].wins;
        let win = wins.iter().position(|win| win.0 == *write);
        let win = win.expect("only winning ops are sent");
        // A correction may overtake the broadcasts that were dropped.
        if !member.corrections.contains(write) {
            assert!(wins[win].1 != place, "an op was sent back to its sender");
            let is_next = member.last_place.is_none_or(|last| last < win);
            assert!(is_next, "an op arrived out of order");
            member.last_place = Some(win);
        }
    }
}
