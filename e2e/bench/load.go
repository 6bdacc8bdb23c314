// Load for the benchmarks, and the servers that it goes to. One static program: in the sandbox it is what the agent runs,
// in the network namespace of the "Internet" it serves. Each mode prints one JSON line.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

var (
	to        = flag.String("to", "", "name:port or address:port")
	proxy     = flag.String("proxy", "", "CONNECT proxy to go through, as address:port")
	workers   = flag.Int("workers", 1, "connections at a time")
	seconds   = flag.Float64("seconds", 1, "how long")
	pause     = flag.Duration("pause", 0, "time between two of one worker's connections or requests")
	size      = flag.Int("size", 128, "bytes of a request and of its answer")
	direction = flag.String("direction", "down", "of a stream: down or up")
	want      = flag.String("want", "open", "until: open or closed")
	target    string
)

const patience = 10 * time.Second

// Bytes for which the sink says one.
const acknowledged = 256 * 1024

// dial connects to the target, through the proxy where there is one.
func dial(limit time.Duration) (net.Conn, error) {
	if *proxy == "" {
		return net.DialTimeout("tcp", target, limit)
	}
	conn, err := net.DialTimeout("tcp", *proxy, limit)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(limit))
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", *to, *to)
	// Byte by byte: what follows the head is not the proxy's.
	head := make([]byte, 0, 256)
	for one := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, one[0]) {
		if _, err := io.ReadFull(conn, one); err != nil {
			conn.Close()
			return nil, err
		}
	}
	if len(head) < 12 || string(head[9:12]) != "200" {
		conn.Close()
		return nil, fmt.Errorf("the proxy answers %.40q", head)
	}
	conn.SetDeadline(time.Time{})
	return conn, nil
}

func echo(conn net.Conn, data []byte) error {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(data); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, data)
	return err
}

func say(result map[string]any) {
	json.NewEncoder(os.Stdout).Encode(result)
}

// everybody has every worker work until the end, and returns the seconds that it took.
func everybody(work func(end time.Time)) float64 {
	var group sync.WaitGroup
	start := time.Now()
	end := start.Add(time.Duration(*seconds * float64(time.Second)))
	for range *workers {
		group.Add(1)
		go func() {
			defer group.Done()
			work(end)
		}()
	}
	group.Wait()
	return time.Since(start).Seconds()
}

// repeat has every worker do `once` again and again, and tells how long each took. `prepare` makes what it needs.
func repeat(prepare func() (func() error, error)) {
	var lock sync.Mutex
	var all []float64
	errors, last := 0, ""
	failed := func(err error) {
		lock.Lock()
		defer lock.Unlock()
		errors, last = errors+1, err.Error()
	}
	took := everybody(func(end time.Time) {
		once, err := prepare()
		if err != nil {
			failed(err)
			return
		}
		var mine []float64
		for time.Now().Before(end) {
			began := time.Now()
			if err := once(); err != nil {
				failed(err)
				time.Sleep(10 * time.Millisecond)
				continue
			}
			mine = append(mine, float64(time.Since(began).Microseconds()))
			if *pause > 0 {
				time.Sleep(*pause)
			}
		}
		lock.Lock()
		all = append(all, mine...)
		lock.Unlock()
	})
	sort.Float64s(all)
	at := func(part float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return all[min(int(part*float64(len(all))), len(all)-1)]
	}
	say(map[string]any{"count": len(all), "per_second": float64(len(all)) / took, "p50_us": at(.5), "p99_us": at(.99),
		"errors": errors, "last_error": last})
}

// connections: connect, one request, close.
func connections() (func() error, error) {
	data := make([]byte, *size)
	return func() error {
		conn, err := dial(patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		return echo(conn, data)
	}, nil
}

// requests: on one connection.
func requests() (func() error, error) {
	conn, err := dial(patience)
	if err != nil {
		return nil, err
	}
	data := make([]byte, *size)
	return func() error { return echo(conn, data) }, nil
}

// names: the question for a name alone.
func names() (func() error, error) {
	host, _, _ := net.SplitHostPort(*to)
	return func() error {
		_, err := net.LookupHost(host)
		return err
	}, nil
}

// streams moves bytes one way for a while, and counts those that have arrived.
func streams() {
	var lock sync.Mutex
	var total int64
	errors := 0
	took := everybody(func(end time.Time) {
		count, err := stream(end)
		lock.Lock()
		defer lock.Unlock()
		total += count
		if err != nil {
			errors++
		}
	})
	say(map[string]any{"bytes": total, "seconds": took, "mb_per_second": float64(total) / took / 1e6, "errors": errors})
}

func stream(end time.Time) (int64, error) {
	conn, err := dial(patience)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	buffer := make([]byte, 256*1024)
	if *direction == "down" {
		var total int64
		for time.Now().Before(end) {
			conn.SetDeadline(time.Now().Add(patience))
			count, err := conn.Read(buffer)
			total += int64(count)
			if err != nil {
				return total, err
			}
		}
		return total, nil
	}
	// Not what was written, which may be under way, but what is said to have arrived.
	arrived := make(chan int64)
	go func() {
		var total int64
		for word := make([]byte, 4096); ; {
			count, err := conn.Read(word)
			total += int64(count) * acknowledged
			if err != nil {
				arrived <- total
				return
			}
		}
	}()
	for time.Now().Before(end) && err == nil {
		conn.SetWriteDeadline(time.Now().Add(patience))
		_, err = conn.Write(buffer)
	}
	conn.SetReadDeadline(time.Now())
	return <-arrived, err
}

// hold opens connections, says how many there are, and keeps them until its time is over.
func hold() {
	var held []net.Conn
	data := make([]byte, *size)
	errors, last := 0, ""
	for range *workers {
		conn, err := dial(patience)
		if err == nil {
			err = echo(conn, data)
		}
		if err != nil {
			errors, last = errors+1, err.Error()
			continue
		}
		held = append(held, conn)
	}
	say(map[string]any{"held": len(held), "errors": errors, "last_error": last})
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	for _, conn := range held {
		conn.Close()
	}
}

// until tries again and again, and tells when the target was first open, or closed.
func until() {
	found := make(chan time.Time, 1024)
	end := time.After(time.Duration(*seconds * float64(time.Second)))
	say(map[string]any{"trying": true})
	for {
		go func() {
			began := time.Now()
			// The name too: an allowed one has no address before.
			conn, err := net.DialTimeout("tcp", *to, 2*time.Second)
			if err == nil {
				err = echo(conn, make([]byte, *size))
				conn.Close()
			}
			switch {
			case err == nil && *want == "open":
				found <- time.Now()
			case err != nil && *want == "closed":
				// It may have waited long for an answer.
				found <- began
			}
		}()
		select {
		case at := <-found:
			say(map[string]any{"at_ns": at.UnixNano()})
			return
		case <-end:
			say(map[string]any{"error": "not within its time"})
			return
		case <-time.After(*pause):
		}
	}
}

// serve: echo, source and sink, at three ports in a row.
func serve(address string, port int) {
	handlers := []func(net.Conn){
		func(conn net.Conn) {
			buffer := make([]byte, 16*1024)
			for {
				count, err := conn.Read(buffer)
				if err != nil {
					return
				}
				if _, err := conn.Write(buffer[:count]); err != nil {
					return
				}
			}
		},
		func(conn net.Conn) {
			for buffer := make([]byte, 256*1024); ; {
				if _, err := conn.Write(buffer); err != nil {
					return
				}
			}
		},
		func(conn net.Conn) {
			said := int64(0)
			for total, buffer := int64(0), make([]byte, 256*1024); ; {
				count, err := conn.Read(buffer)
				total += int64(count)
				if words := total/acknowledged - said; words > 0 {
					conn.Write(make([]byte, words))
					said += words
				}
				if err != nil {
					return
				}
			}
		},
	}
	for i, handle := range handlers {
		listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", address, port+i))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					handle(conn)
				}()
			}
		}()
	}
	say(map[string]any{"serving": true})
	// Until whoever started it is gone.
	bufio.NewReader(os.Stdin).ReadByte()
}

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	mode := os.Args[1]
	os.Args = os.Args[1:]
	flag.Parse()
	if mode == "wait" {
		for {
			time.Sleep(time.Hour)
		}
	}
	host, port, err := net.SplitHostPort(*to)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	target = *to
	if mode == "serve" {
		var number int
		fmt.Sscan(port, &number)
		serve(host, number)
		return
	}
	// Asked for once: the question is measured by itself.
	if *proxy == "" && mode != "until" && mode != "names" {
		addresses, err := net.LookupHost(host)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		target = net.JoinHostPort(addresses[0], port)
	}
	switch mode {
	case "connections":
		repeat(connections)
	case "requests":
		repeat(requests)
	case "names":
		repeat(names)
	case "streams":
		streams()
	case "hold":
		hold()
	case "until":
		until()
	default:
		os.Exit(2)
	}
}
