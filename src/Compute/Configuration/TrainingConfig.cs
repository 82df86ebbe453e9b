namespace Megatron.Compute.Configuration;

/// <summary>
/// Everything a user can say about a run. One representation serves the command line, the configuration file, <c>args.json</c>, the message
/// to the job grain and the checkpoint (D10): <see cref="ToJson"/> is canonical, and two configurations are equal when their JSON is.
/// Properties stand in one file per section; the <see cref="OptionAttribute"/> of each is its documentation. Null means "not said": filled
/// from <c>args.json</c>, from the model's <c>config.json</c> or by a rule that the option's help names. Which options the user gave is not
/// part of the configuration: see <see cref="GivenOptions"/>.
/// </summary>
public sealed partial record TrainingConfig
{
    /// <summary>Canonical JSON: snake_case keys in declared order, all of them, numbers in their shortest round-trip form.</summary>
    public string ToJson() => ConfigJson.Write(this);

    /// <summary>Reads what <see cref="ToJson"/> wrote; absent keys keep their defaults.</summary>
    /// <exception cref="ConfigException">The text is no JSON object, a key is unknown or a value has the wrong type (all are
    /// listed).</exception>
    public static TrainingConfig FromJson(string json) => ConfigJson.Read(json);

    /// <summary>Equal when the canonical JSON is equal: lists count by content.</summary>
    public bool Equals(TrainingConfig? other) => other is not null && (ReferenceEquals(this, other) || ToJson() == other.ToJson());

    /// <inheritdoc/>
    public override int GetHashCode() => StringComparer.Ordinal.GetHashCode(ToJson());

    /// <summary>The canonical JSON.</summary>
    public override string ToString() => ToJson();
}
