#!/usr/bin/perl
# usage: lie.pl CAPABILITY MINT-KEY MODEL-FILE OUT
#
# What clawfs itself cannot do: signs a capability for a file that no rebuild
# gave, as whoever has stolen a mint key could. CAPABILITY is somebody's honest
# one, from which all else is taken. Needs openssl.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use File::Temp qw(tempfile);
use JSON::PP;
use MIME::Base64;

my ($capability, $key, $model, $out) = @ARGV;

sub content {
	my ($name) = @_;
	open my $in, '<:raw', $name or die "$name: $!\n";
	local $/;
	return scalar <$in>;
}

sub run {
	open my $in, '-|:raw', @_ or die "$_[0]: $!\n";
	local $/;
	my $printed = <$in>;
	close $in or die "@_ failed\n";
	return $printed;
}

sub netstring { return join '', map { length($_) . ":$_," } @_ }

my $payload = decode_base64(decode_json(content($capability))->{payload});
my $said = decode_json($payload)->{predicate};
my $subject = decode_json($payload)->{subject};
@$subject == 1 or die "the capability has more than one file\n";
my ($name, $honest) = ($subject->[0]{name}, $subject->[0]{digest}{sha256});
my $other = sha256_hex(content($model));
my $minter = sha256_hex(run('openssl', 'pkey', '-in', $key, '-pubout', '-outform', 'DER'));
my $claim = sha256_hex(netstring('clawfs-claim/v1', $said->{sba}{digest}{sha256}, $said->{publisher}{keyid}, $name, $other));

# The text has one encoding, so words are exchanged in it.
$payload =~ s/\Q$honest\E/$other/ or die;
$payload =~ s/"claim":"[0-9a-f]{64}"/"claim":"$claim"/ or die;
$payload =~ s/"minter":\{"keyid":"[0-9a-f]{64}"\}/"minter":{"keyid":"$minter"}/ or die;
$payload =~ s/"fsverity":"[0-9a-f]{64}"/'"fsverity":"' . sha256_hex("made up") . '"'/e or die;

my $type = 'application/vnd.in-toto+json';
my ($fh, $pae) = tempfile(UNLINK => 1);
binmode $fh;
print $fh sprintf('DSSEv1 %d %s %d %s', length $type, $type, length $payload, $payload);
close $fh;
my $signature = run('openssl', 'pkeyutl', '-sign', '-rawin', '-inkey', $key, '-in', $pae);
open my $to, '>:raw', $out or die "$out: $!\n";
printf $to '{"payload":"%s","payloadType":"%s","signatures":[{"sig":"%s"}]}' . "\n",
	encode_base64($payload, ''), $type, encode_base64($signature, '');
close $to or die "$out: $!\n";
print "$claim\n";
