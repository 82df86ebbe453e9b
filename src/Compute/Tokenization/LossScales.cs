using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>Names of <see cref="LossScale"/> on the command line.</summary>
public static class LossScales
{
    /// <summary>All names, in the order of the documentation.</summary>
    public static IReadOnlyList<string> Names { get; } = ["default", "last_round", "all", "ignore_empty_think"];

    /// <summary>The loss scale of a name. Throws <see cref="ConfigException"/> TPL005 for another name.</summary>
    public static LossScale Parse(string name) => name switch
    {
        "default" => LossScale.Default,
        "last_round" => LossScale.LastRound,
        "all" => LossScale.All,
        "ignore_empty_think" => LossScale.IgnoreEmptyThink,
        _ => throw new ConfigException("TPL005", $"loss_scale = '{name}' is not supported; choose {string.Join(", ", Names)}."),
    };
}
