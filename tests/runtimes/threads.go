// SPDX-License-Identifier: LGPL-2.1-only
// Goroutines on all CPUs, channels, timers, sleeps, garbage and preemption of loops without calls; one line for each step.
package main

import (
	"fmt"
	"runtime"
	"sync"
	"time"
)

type node struct {
	left, right *node
	value       uint64
}

func (n *node) insert(value uint64) *node {
	if n == nil {
		return &node{value: value}
	}
	if value < n.value {
		n.left = n.left.insert(value)
	} else {
		n.right = n.right.insert(value)
	}
	return n
}

func (n *node) sum(depth uint64) uint64 {
	if n == nil {
		return depth
	}
	return n.left.sum(depth+1)*31 + n.right.sum(depth+1)*17 + n.value
}

func part(seed uint64) uint64 {
	var tree *node
	x := seed
	for i := 0; i < 4000; i++ {
		x = x*6364136223846793005 + 1442695040888963407
		tree = tree.insert(x >> 20)
	}
	for i := 0; i < 300000; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	time.Sleep(time.Millisecond)
	return tree.sum(0) + x
}

func main() {
	ticker := time.NewTicker(time.Millisecond)
	total := uint64(0)
	for step := uint64(0); step < 150; step++ {
		results := make([]uint64, 4*runtime.NumCPU())
		var group sync.WaitGroup
		for i := range results {
			group.Add(1)
			go func(i int) {
				defer group.Done()
				results[i] = part(step*100 + uint64(i%4) + 1)
			}(i)
		}
		done := make(chan bool)
		go func() { group.Wait(); close(done) }()
		<-ticker.C
		select {
		case <-done:
		case <-time.After(time.Hour):
			panic("no result")
		}
		for i := 0; i < 4; i++ {
			total = total*31 + results[i]
		}
		if step%50 == 0 {
			runtime.GC()
		}
		fmt.Println(step, total)
	}
}
