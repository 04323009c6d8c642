# usage: perl -CSD corpus.pl OUT LANGUAGE.roff...
#
# Takes sentences out of manual pages. fastText does not shuffle, so the
# languages take turns; every tenth sentence is kept for validation.
use strict;
use warnings;

my $per_language = 6000;
my ( $out, @files ) = @ARGV;

# text returns the running text of one line of roff, or undef at a paragraph's
# end. Code and tables are left out by the caller.
sub text {
    my ($line) = @_;
    if ( $line =~ s/^[.']\s*// ) {
        return undef unless $line =~ s/^(?:B|I|BR|IR|RB|RI|BI|IB|SM|SB)\s+//;
        $line =~ s/"//g;
    }
    $line =~ s/\\f(?:\[[^\]]*\]|\(..|.)//g;         # fonts
    $line =~ s/\\s[-+]?\d+//g;                      # sizes
    $line =~ s/\\\*(?:\[[^\]]*\]|\(..|.)//g;        # strings
    $line =~ s/\\\[u([0-9A-F]{4,5})\]/chr hex $1/ge;
    $line =~ s/\\(?:\[[^\]]*\]|\(..)/ /g;           # other glyphs
    $line =~ s/\\-/-/g;
    $line =~ s/\\[&|^%,\/:]//g;
    $line =~ s/\\./ /g;
    return $line;
}

# sentences calls $take for the clean sentences of a file, until $enough.
sub sentences {
    my ( $file, $take, $enough ) = @_;
    my ( $paragraph, $skip ) = ( '', 0 );
    my $flush = sub {
        for my $sentence ( split /(?<=[.!?:;])\s+/, $paragraph ) {
            $sentence = lc $sentence;
            my $letters = () = $sentence =~ /[^\W\d_]/g;
            next if $letters < 30 || $letters < 0.75 * length $sentence;
            $sentence =~ s/[\W\d_]+/ /g;
            $sentence =~ s/^ | $//g;
            $take->($sentence) if ( () = $sentence =~ / /g ) >= 4;
        }
        $paragraph = '';
    };
    open my $in, '<', $file or die "$file: $!\n";
    while ( my $line = <$in> ) {
        last if $enough->();
        chomp $line;
        next if $line =~ /^[.']\s*\\"/;
        if ( $line =~ /^[.'](?:nf|EX|TS)\b/ ) { $skip = 1; $flush->(); next }
        if ( $line =~ /^[.'](?:fi|EE|TE|TH)\b/ ) { $skip = 0; $flush->(); next }
        next if $skip;
        my $text = text($line);
        if   ( !defined $text || $text eq '' ) { $flush->() }
        else                                   { $paragraph .= "$text " }
    }
    $flush->();
    close $in;
}

# A sentence that two languages share was not translated, or is a name.
my ( %kept, %seen );
for my $file (@files) {
    my ($language) = $file =~ m{([a-z]+)\.roff$} or die "$file: want LANGUAGE.roff\n";
    my %here;
    sentences( $file, sub {
        my ($sentence) = @_;
        return if $here{$sentence}++;
        push @{ $kept{$language} }, $sentence;
        $seen{$sentence}++;
    }, sub { @{ $kept{$language} // [] } > 1.2 * $per_language } );
}
my @languages = sort keys %kept;
for my $language (@languages) {
    $kept{$language} = [ grep { $seen{$_} == 1 } @{ $kept{$language} } ];
}

open my $train, '>', "$out/train.txt" or die "$out/train.txt: $!\n";
open my $valid, '>', "$out/valid.txt" or die "$out/valid.txt: $!\n";
my %count;
for my $i ( 0 .. $per_language - 1 ) {
    for my $language (@languages) {
        my $sentence = $kept{$language}[$i] // next;
        print { $i % 10 == 9 ? $valid : $train } "__label__$language $sentence\n";
        $count{$language}++;
    }
}
close $train or die "$out/train.txt: $!\n";
close $valid or die "$out/valid.txt: $!\n";
print STDERR "corpus: ", join( ', ', map { "$count{$_} $_" } @languages ), " sentences\n";
