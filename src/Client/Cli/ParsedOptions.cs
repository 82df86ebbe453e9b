using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>What a verb gets: the run as the user described it, not yet validated against the model.</summary>
/// <param name="Verb">Name of the verb.</param>
/// <param name="Config">The command line over the configuration file over the args.json chain over the defaults.</param>
/// <param name="Given">Options that the user gave in the file or on the command line.</param>
/// <param name="Words">Words that belong to no option.</param>
/// <param name="Environment">The environment variables.</param>
/// <param name="Notices">Lines about accepted options without effect, already printed.</param>
public sealed record ParsedOptions(
    string Verb, TrainingConfig Config, GivenOptions Given, IReadOnlyList<string> Words, LaunchEnvironment Environment, IReadOnlyList<string> Notices);
