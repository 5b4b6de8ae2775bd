"""Collecting datasets by D4RL's recipe (Fu et al. 2020, section 5 and its published scripts).

Locomotion: SAC is trained from scratch; `medium` rolls out its policy when it first reached a
medium score, `medium-replay` is everything that it saw until then, `expert` rolls out the last
policy, `random` the first. Mazes: a waypoint controller, or a policy that walks to goals.

Whatever is collected goes to the disk in parts of whole episodes. A part of roll-outs depends on
nothing but the seed and its own number, so a run resumes, and extends, without a trace.

  parts.py       episodes, and folders of them
  policies.py    policies as plain arrays
  behaviours.py  what acts, and the loop that collects
  online.py      SAC in the simulator
"""
