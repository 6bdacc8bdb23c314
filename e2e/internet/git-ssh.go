// A server of one git repository by SSH, for the tests of domain egress. It knows no users and no shell, and ends when its
// standard input does.
//
//	git-ssh ADDRESS REPOSITORY KEY_FILE    the host's public key is written to KEY_FILE
package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"log"
	"net"
	"os"
	"os/exec"

	"golang.org/x/crypto/ssh"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("git-ssh ADDRESS REPOSITORY KEY_FILE")
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	check(err)
	signer, err := ssh.NewSignerFromKey(private)
	check(err)
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	listener, err := net.Listen("tcp", os.Args[1])
	check(err)
	check(os.WriteFile(os.Args[3], ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644))
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		stream, err := listener.Accept()
		check(err)
		go serve(stream, config, os.Args[2])
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func serve(stream net.Conn, config *ssh.ServerConfig, repository string) {
	defer stream.Close()
	_, channels, requests, err := ssh.NewServerConn(stream, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for channel := range channels {
		if channel.ChannelType() != "session" {
			channel.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		session, requests, err := channel.Accept()
		if err != nil {
			return
		}
		go answer(session, requests, repository)
	}
}

// Runs `git upload-pack` for the one command that there is.
func answer(session ssh.Channel, requests <-chan *ssh.Request, repository string) {
	defer session.Close()
	for request := range requests {
		var asked struct{ Command string }
		if request.Type != "exec" || ssh.Unmarshal(request.Payload, &asked) != nil || asked.Command != "git-upload-pack '/repo.git'" {
			request.Reply(false, nil)
			continue
		}
		request.Reply(true, nil)
		pack := exec.Command("git", "upload-pack", repository)
		pack.Stdin, pack.Stdout, pack.Stderr = session, session, session.Stderr()
		status := struct{ Code uint32 }{}
		if pack.Run() != nil {
			status.Code = 1
		}
		session.SendRequest("exit-status", false, ssh.Marshal(&status))
		return
	}
}
