# Asks an HTTP server and says what it answers: ask.pl HOST PORT METHOD TARGET [HEADER...]
use strict; use Socket;
$SIG{ALRM} = sub { print "SILENT\n"; exit }; alarm 60;
my ($host, $port, $method, $target, @headers) = @ARGV;
my $address = inet_aton($host) or do { print "UNKNOWN $host\n"; exit };
socket(my $s, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
connect($s, sockaddr_in($port, $address)) or do { print "CLOSED $host:$port $!\n"; exit };
my $body = $method eq "POST" || $method eq "PUT"
    ? '{"model":"claude-sonnet-4-5","max_tokens":16,"decision":"approve_once","messages":[{"role":"user","content":"hello"}]}' : "";
my ($named) = $target =~ m{^http://([^/]+)};
$named //= $method eq "CONNECT" ? $target : "$host:$port";
my $head = join "\r\n", "$method $target HTTP/1.1", "Host: $named", "Connection: close", "Content-Type: application/json",
    "Content-Length: " . length($body), "anthropic-version: 2023-06-01", @headers, "", "";
syswrite $s, $head . $body;
my ($answer, $piece) = ("", "");
$answer .= $piece while length($answer) < 20000 && sysread($s, $piece, 4096);
my ($status) = $answer =~ m{^HTTP/1\.\d (\d+)};
my ($said) = $answer =~ m{\r\n\r\n(.*)}s;
$said = substr($said // "", 0, 500); $said =~ s/\s+/ /g;
print "ANSWER ", $status // "none", " $method $target: $said\n";
