namespace Megatron.Compute.Configuration;

/// <summary>Chapter of an option in the help, in <c>docs/parameters.md</c> and in the canonical JSON (in this order).</summary>
public enum OptionSection
{
    Base, Data, Template, Training, LearningRate, Regularisation, Checkpoint, Distributed, Logging, Evaluation, MixedPrecision, Model, Moe,
    MegatronTraining, Run, Infer, Export, Verify, Report,
}

/// <summary>What an accepted value of an option does.</summary>
public enum OptionEffect
{
    /// <summary>
    /// The value changes what the run does. Values that are not built yet stand in <see cref="UnsupportedValues"/> and are refused.
    /// </summary>
    Works,

    /// <summary>
    /// The value could only change speed or memory elsewhere; here it is accepted, has no effect and the run says so in one line.
    /// </summary>
    SpeedOnly,
}

/// <summary>
/// Makes a property of <see cref="TrainingConfig"/> an option: of the command line, of a configuration file, of <c>args.json</c> and of
/// <c>docs/parameters.md</c>. The help text is the property's documentation.
/// </summary>
/// <param name="name">snake_case name as the reference spells it; the property's name is its PascalCase form.</param>
/// <param name="help">What it does, with the unit.</param>
/// <param name="section">Chapter.</param>
[AttributeUsage(AttributeTargets.Property)]
public sealed class OptionAttribute(string name, string help, OptionSection section) : Attribute
{
    /// <summary>snake_case name.</summary>
    public string Name { get; } = name;

    /// <summary>Help sentence.</summary>
    public string Help { get; } = help;

    /// <summary>Chapter.</summary>
    public OptionSection Section { get; } = section;

    /// <summary>What an accepted value does.</summary>
    public OptionEffect Effect { get; init; } = OptionEffect.Works;

    /// <summary>Other accepted names, separated by <c>|</c>.</summary>
    public string Aliases { get; init; } = "";

    /// <summary>
    /// Names, separated by <c>|</c>, that mean this option under the training verbs only (elsewhere they are options of their own).
    /// </summary>
    public string TrainingAliases { get; init; } = "";

    /// <summary>Legal words, separated by <c>|</c>; empty when any text is legal.</summary>
    public string Choices { get; init; } = "";

    /// <summary>
    /// True when the value is a JSON object or list: given as JSON text or as the path of a JSON file, kept as compact JSON text.
    /// </summary>
    public bool IsJson { get; init; }

    /// <summary>Where the value comes from when the default is empty, e.g. <c>train_iters</c>.</summary>
    public string DefaultFrom { get; init; } = "";
}
