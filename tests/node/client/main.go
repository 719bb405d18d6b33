// A workload of the end-to-end test: posts usage events as a service in a cluster would, or reads usage.
//
//	client post    sends batches at a steady pace until `client stop` is run beside it, then says what was acknowledged
//	client get     prints what GET on a path answers
//	client stop    ends the `client post` in the same container
//
// With `-ca` it speaks TLS and takes no other certificate than one by this CA. It counts the connections that it opens, by the
// serial number of the certificate that it is shown.
//
// Its words are lines of JSON. Every event is `{"tokens": N}` with N from 1 to 10 by its number, so that the sum of what was
// acknowledged is known without asking anybody.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	stopFile  = "/tmp/stop"
	tokenFile = "/var/run/kubemeter/token"
)

// Options of a run.
type options struct {
	url, namespace, source, eventType, subjects, path, ca string
	batch, workers, newcomers                             int
	pause, patience                                       time.Duration
}

// What happened so far. `Failed` counts requests that were not answered 202; each of them was sent again.
type tally struct {
	Events, Sum, Requests, Again, Failed, Rejected atomic.Int64
	failures                                       sync.Map // answer → *atomic.Int64
	shown                                          sync.Map // serial number of a certificate → *atomic.Int64
}

func main() {
	var o options
	flag.StringVar(&o.url, "url", "http://kubemeter.metering:8080", "the gateway")
	flag.StringVar(&o.namespace, "namespace", "default", "of the meters")
	flag.StringVar(&o.source, "source", "client", "the events' source")
	flag.StringVar(&o.eventType, "type", "llm.completion", "the events' type")
	flag.StringVar(&o.subjects, "subjects", "acme-prod,acme-eu,globex", "the events' subjects, in turn")
	flag.StringVar(&o.path, "path", "/meters", "what to get")
	flag.StringVar(&o.ca, "ca", "", "a file with the CA by which the gateway is known")
	flag.IntVar(&o.newcomers, "newcomers", 0, "how many of the workers open a connection for each request")
	flag.IntVar(&o.batch, "batch", 50, "events in a request")
	flag.IntVar(&o.workers, "workers", 4, "requests at a time")
	flag.DurationVar(&o.pause, "pause", 100*time.Millisecond, "between two requests of a worker")
	flag.DurationVar(&o.patience, "patience", 2*time.Minute, "how long a batch is tried, or an answer waited for")
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
		_ = flag.CommandLine.Parse(os.Args[2:])
	}
	run := map[string]func(options) error{"post": post, "get": get, "stop": stop}[command]
	if run == nil {
		fmt.Fprintln(os.Stderr, "usage: client post|get|stop [-flag …]")
		os.Exit(2)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func stop(options) error {
	return os.WriteFile(stopFile, nil, 0o600)
}

func get(o options) error {
	sign := "?"
	if strings.Contains(o.path, "?") {
		sign = "&"
	}
	client, err := newClient(o, nil)
	if err != nil {
		return err
	}
	var status int
	var body []byte
	// A pod that has just begun may not be let through yet: the network has to hear of it.
	for deadline := time.Now().Add(o.patience); ; time.Sleep(100 * time.Millisecond) {
		request, err := newRequest(http.MethodGet, o.url+o.path+sign+"namespace="+url.QueryEscape(o.namespace), nil)
		if err != nil {
			return err
		}
		status, body, err = send(client, request)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	if status != http.StatusOK {
		return fmt.Errorf("%d %s", status, body)
	}
	fmt.Println(strings.TrimSpace(string(body)))
	return nil
}

func post(o options) error {
	var t tally
	var next atomic.Int64
	var stopping atomic.Bool
	errs := make(chan error, o.workers)
	for worker := range o.workers {
		client, err := newClient(o, &t)
		if err != nil {
			return err
		}
		client.Transport.(*http.Transport).DisableKeepAlives = worker < o.newcomers
		go func() {
			for !stopping.Load() {
				if err := postBatch(client, o, next.Add(1)-1, &t); err != nil {
					errs <- err
					return
				}
				time.Sleep(o.pause)
			}
			errs <- nil
		}()
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var failed error
	for left := o.workers; left > 0; {
		select {
		case err := <-errs:
			left--
			failed = errors.Join(failed, err)
			if err != nil {
				stopping.Store(true)
			}
		case <-ticker.C:
			t.print("running")
			if _, err := os.Stat(stopFile); err == nil {
				stopping.Store(true)
			}
		}
	}
	if failed != nil {
		return failed
	}
	t.print("done")
	return nil
}

// Sends one batch until it is acknowledged, every tenth once more after that.
func postBatch(client *http.Client, o options, number int64, t *tally) error {
	type event map[string]any
	subjects := strings.Split(o.subjects, ",")
	events := make([]event, o.batch)
	sum := int64(0)
	for i := range events {
		n := number*int64(o.batch) + int64(i)
		tokens := n%10 + 1
		sum += tokens
		events[i] = event{
			"specversion": "1.0", "source": o.source, "id": fmt.Sprint(n), "type": o.eventType,
			"subject": subjects[n%int64(len(subjects))], "time": time.Now().UTC().Format(time.RFC3339Nano),
			"data": map[string]any{"tokens": tokens, "model": "large", "direction": "input"},
		}
	}
	body, err := json.Marshal(events)
	if err != nil {
		return err
	}
	sends := 1
	if number%10 == 0 {
		sends = 2
	}
	for range sends {
		if err := untilAccepted(client, o, body, t); err != nil {
			return err
		}
	}
	t.Again.Add(int64(sends - 1))
	t.Events.Add(int64(len(events)))
	t.Sum.Add(sum)
	return nil
}

func untilAccepted(client *http.Client, o options, body []byte, t *tally) error {
	deadline := time.Now().Add(o.patience)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		request, err := newRequest(http.MethodPost, o.url+"/events?namespace="+url.QueryEscape(o.namespace), body)
		if err != nil {
			return err
		}
		t.Requests.Add(1)
		status, answer, err := send(client, request)
		if err == nil && status == http.StatusAccepted {
			var said struct {
				Rejected []json.RawMessage `json:"rejected"`
			}
			if err := json.Unmarshal(answer, &said); err != nil {
				return err
			}
			t.Rejected.Add(int64(len(said.Rejected)))
			return nil
		}
		t.fail(status, err)
		if time.Now().After(deadline) {
			return fmt.Errorf("a batch was not accepted within %s: %d %s %v", o.patience, status, answer, err)
		}
		time.Sleep(pause)
	}
}

func newClient(o options, t *tally) (*http.Client, error) {
	// Short, so that a gateway that was killed with its node's address gone is noticed.
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	transport := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 1}
	if o.ca != "" {
		authority, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, err
		}
		known := x509.NewCertPool()
		if !known.AppendCertsFromPEM(authority) {
			return nil, fmt.Errorf("%s holds no certificate", o.ca)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: known, VerifyConnection: func(state tls.ConnectionState) error {
			if t != nil {
				count(&t.shown, state.PeerCertificates[0].SerialNumber.String())
			}
			return nil
		}}
	}
	return &http.Client{Timeout: 15 * time.Second, Transport: transport}, nil
}

func newRequest(method, address string, body []byte) (*http.Request, error) {
	request, err := http.NewRequest(method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	// A mounted token is renewed while it is used: read it each time.
	token, err := os.ReadFile(tokenFile)
	if err == nil {
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return request, nil
}

func send(client *http.Client, request *http.Request) (int, []byte, error) {
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, body, err
}

func (t *tally) fail(status int, err error) {
	t.Failed.Add(1)
	what := fmt.Sprint(status)
	if err != nil {
		for cause := err; cause != nil; cause = errors.Unwrap(cause) {
			err = cause // the innermost: without addresses
		}
		what = err.Error()
	}
	count(&t.failures, what)
}

func count(counts *sync.Map, what string) {
	found, _ := counts.LoadOrStore(what, new(atomic.Int64))
	found.(*atomic.Int64).Add(1)
}

func counted(counts *sync.Map) map[string]int64 {
	found := map[string]int64{}
	counts.Range(func(what, count any) bool {
		found[what.(string)] = count.(*atomic.Int64).Load()
		return true
	})
	return found
}

func (t *tally) print(state string) {
	line, _ := json.Marshal(map[string]any{
		"state": state, "events": t.Events.Load(), "sum": t.Sum.Load(), "requests": t.Requests.Load(),
		"again": t.Again.Load(), "failed": t.Failed.Load(), "rejected": t.Rejected.Load(), "failures": counted(&t.failures),
		"shown": counted(&t.shown),
	})
	fmt.Println(string(line))
}
