namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: run form (reference 1.11).
public sealed partial record TrainingConfig
{
    [Option("add_version", "Put the output in a sub-folder v{N}-{date}-{time}.", MegatronTraining)]
    public bool AddVersion { get; init; } = true;

    [Option("max_epochs", "Passes over the data.", MegatronTraining, Aliases = "num_train_epochs")]
    public int? MaxEpochs { get; init; }

    [Option("packing", "Join samples to rows of about packing_length tokens.", MegatronTraining)]
    public bool Packing { get; init; }

    [Option("packing_length", "Tokens per pack.", MegatronTraining, DefaultFrom = "max_length")]
    public int? PackingLength { get; init; }

    [Option("packing_strategy", "binpack fills packs best; sequential keeps the order of the samples.",
        MegatronTraining, Choices = "binpack|sequential")]
    public string PackingStrategy { get; init; } = "binpack";

    [Option("row_padding_multiple", "Rows of tokens are padded at their end to a multiple of this many tokens; 1 = not padded.", MegatronTraining)]
    public int RowPaddingMultiple { get; init; } = 128;

    [Option("streaming", "Read the data while training; needs train_iters.", MegatronTraining)]
    public bool Streaming { get; init; }

    [Option("lazy_tokenize", "Encode a row when it is used instead of before training.", MegatronTraining)]
    public bool LazyTokenize { get; init; }
}
