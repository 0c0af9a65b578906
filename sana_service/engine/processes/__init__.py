"""Devices with a process each, behind the one queue of this process.

    this process                              a device's process
    JobQueue --> ProcessLoop == socket ==> child: take --> DeviceLoop
                     ^                                        |
                     `===== socket, pixels in memory <========'

Python runs one thread of a process at a time, and drawing a picture takes the host several milliseconds of it: with
several devices in one process they wait for one another (docs/performance.md). A process has the same loop, stages and
pictures as a device in this process; what the queue must know of it comes back in messages, and pixels in memory that
both see.
"""
